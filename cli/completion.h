// Completion scripts, generated from the flag tree so that they cannot fall behind it.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace llmctl::cli {

/// The script that makes the shell complete verbs, flags, the values of choices and paths of
/// `root`. It needs nothing but the shell itself.
std::string bash_completion(const CLI::App& root);
std::string zsh_completion(const CLI::App& root);
std::string fish_completion(const CLI::App& root);

}  // namespace llmctl::cli
