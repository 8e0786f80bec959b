// `llmctl run` on ranks that mpirun or srun has started as processes.
#pragma once

#include <memory>

#include "cli/run_options.h"
#include "runtime/comm/process_link.h"
#include "runtime/engine.h"
#include "runtime/rank_group.h"

namespace llmctl::cli {

/// The ranks of `options`: the processes of `link`, or threads where that is null. Divides
/// `engine`'s threads. Throws kUsage, with the command that would be right, when there are not
/// tp * pp processes.
std::unique_ptr<runtime::RankGroup> make_ranks(runtime::ProcessLink* link,
                                               const RunOptions& options,
                                               runtime::EngineOptions& engine);

}  // namespace llmctl::cli
