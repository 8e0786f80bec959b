// Runs a shell script in a folder and hands back what it printed and how it ended.
#pragma once

#include <filesystem>
#include <string>

namespace llmctl::test {

struct CommandResult {
  std::string out, err;
  int status = -1;  ///< exit status; 128 + n when signal n ended it
};

/// Runs `script` with sh in `folder`, stdin empty, `llmctl` being the binary under test,
/// ($LLMCTL its path), $SOURCE the checkout and $TMP the folder.
CommandResult run_script(const std::string& script, const std::filesystem::path& folder);

/// The whole of a file; empty when there is none.
std::string file_text(const std::filesystem::path& path);

}  // namespace llmctl::test
