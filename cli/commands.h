// The verbs of llmctl, and the way from a command line to one of them.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "cli/exit_code.h"

namespace llmctl::cli {

/// What a verb does once its flags are parsed. Throws llmctl::Error.
using Run = std::function<ExitCode()>;

/// One row per verb; the whole list stands in commands.cc.
struct Command {
  std::string_view name;
  std::string_view summary;  ///< one line, shown by `llmctl --help`
  /// Declares the verb's flags and help on `verb`; touches nothing else. The returned Run owns
  /// the parsed options and is called at most once, after parsing.
  Run (*add)(CLI::App& verb);
  /// Whether processes that mpirun starts share its work; the others refuse to run there.
  bool shares_work = false;
};

/// Every verb, in the order in which help lists them.
std::span<const Command> command_table();

// One per file cli/<verb>.cc.
Run add_inspect(CLI::App& verb);
Run add_convert(CLI::App& verb);
Run add_export(CLI::App& verb);
Run add_plan(CLI::App& verb);
Run add_synth(CLI::App& verb);
Run add_check(CLI::App& verb);
Run add_reshard(CLI::App& verb);
Run add_diff(CLI::App& verb);
Run add_digest(CLI::App& verb);
Run add_run(CLI::App& verb);
Run add_bench(CLI::App& verb);
Run add_completion(CLI::App& verb);

/// The flag tree of all verbs. `runs`, when given, receives one Run per row of the table.
std::unique_ptr<CLI::App> make_app(std::vector<Run>* runs = nullptr);

/// Parses and runs. Throws kUsage for a line that does not parse, with "did you mean" for an
/// unknown verb or flag; whatever the verb throws passes through.
ExitCode run_command_line(int argc, const char* const* argv);

}  // namespace llmctl::cli
