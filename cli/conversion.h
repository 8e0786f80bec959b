// What the verbs that write checkpoints share: flags of Megatron's layout, and the run itself.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>

#include "cli/exit_code.h"
#include "cli/flags.h"
#include "formats/core/process_group.h"
#include "reshard/convert.h"

namespace llmctl::cli {

/// Flags of targets in Megatron's layout. Lives as long as the verb.
struct MegatronFlags {
  int64_t pp = 1, virtual_pp = 1;
  std::string names, blocks;
  bool keep_rng = false;

  /// Without a source there is no random number state to keep.
  void add(CLI::App& verb, bool has_source = true);
  /// Fills in `options`. Throws kUsage naming the flag.
  void resolve(reshard::ConvertOptions& options) const;
};

/// Flags of how to write. Lives as long as the verb.
struct WriteFlags {
  int64_t jobs = 1;
  uint64_t max_memory = 0;
  VerifyFlags verify;
  std::string progress;
  bool overwrite = false, resume = false, dry_run = false;

  void add(CLI::App& verb);
  void resolve(reshard::ConvertOptions& options) const;
};

/// What `--on-overflow error|inf|clamp` means.
reshard::OnOverflow overflow_policy(const std::string& name);

/// Prints the notes, then the plan (--dry-run) or runs it with progress and a summary.
/// `on_overflow` is the policy's name, for the report. Of a group only rank 0 prints. Without
/// `with_rate` the summary leaves out how fast it was: holes are written at no rate. What was
/// written is also left in `result`, where it is not null.
ExitCode carry_out(reshard::Conversion& conversion, const WriteFlags& flags,
                   const std::string& on_overflow, const ProcessGroup* group = nullptr,
                   bool with_rate = true, reshard::ConvertSummary* result = nullptr);

}  // namespace llmctl::cli
