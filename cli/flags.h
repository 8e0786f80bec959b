// The kinds of flag that verbs declare, so that each kind is checked, worded and completed alike.
//
// Every helper puts what completion needs into the option's type name: "{a,b,c}" for a choice,
// "PATH" for something on disk.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cli/progress.h"
#include "kernels/quantization.h"

namespace llmctl::cli {

/// A path, as a required positional ("SRC") or a flag ("--out"). An empty one throws kUsage.
CLI::Option* add_path(CLI::App& verb, const std::string& name, std::string& target,
                      const std::string& description);

/// One or more paths, as a required positional.
CLI::Option* add_paths(CLI::App& verb, const std::string& name, std::vector<std::string>& target,
                       const std::string& description);

/// The cores that this process may use, less those of other processes of its job on this host.
int64_t cores_for_this_process();

/// `--jobs N`, by default one per core this process may use, and `least` where most of them wait
/// for a disk.
CLI::Option* add_jobs(CLI::App& verb, int64_t& target, int64_t least = 1);

/// `--verify pass|readback|none` and `--no-verify`.
struct VerifyFlags {
  std::string mode = "pass";
  bool none = false;
};
void add_verify(CLI::App& verb, VerifyFlags& target);

/// `--progress auto|json|none`; `progress_style` says what it means.
CLI::Option* add_progress(CLI::App& verb, std::string& target);
ProgressStyle progress_style(const std::string& name);

/// What a user may say about a checkpoint that does not say it itself. Lives as long as the verb.
struct SourceFlags {
  std::string family_file;
  std::vector<std::string> set;
  int64_t vocab_size = 0;

  /// `--family-file`, `--set` and `--vocab-size`.
  void add(CLI::App& verb);
  /// OpenOptions::settings. Throws kUsage on a setting that is no ARG=VALUE.
  std::map<std::string, std::string> settings() const;
};

/// `--quant` and `--group-size`: how matrices are quantised (docs/quantisation.md).
struct QuantizationFlags {
  std::string method;
  int64_t group_size = -1;  ///< -1: the method's own

  void add(CLI::App& verb);
  /// Nothing when the flags are not given. Throws kUsage for a group size without integers.
  std::optional<kernels::Quantization> resolve() const;
};

/// A whole number in [min, max]; `metavar` names it in help ("N", "T"). Anything else throws
/// kUsage.
CLI::Option* add_integer(CLI::App& verb, const std::string& names, int64_t& target, int64_t min,
                         int64_t max, const std::string& metavar, const std::string& description);

/// A finite real number in [min, max].
CLI::Option* add_real(CLI::App& verb, const std::string& names, double& target, double min,
                      double max, const std::string& metavar, const std::string& description);

/// One of `choices`; throws kUsage with "did you mean" otherwise.
CLI::Option* add_choice(CLI::App& verb, const std::string& names, std::string& target,
                        std::span<const std::string_view> choices, const std::string& description);

/// A positive size in bytes: "500MB", "5GB" (decimal), "4GiB" (binary), "1048576".
CLI::Option* add_size(CLI::App& verb, const std::string& names, uint64_t& target,
                      const std::string& description);

/// Ends the verb's help with `examples`, one a line; "llmctl" is put in front of each.
void set_examples(CLI::App& verb, std::span<const std::string_view> examples);

}  // namespace llmctl::cli
