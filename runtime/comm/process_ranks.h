// The ranks of a grid as processes, one in each.
#pragma once

#include <memory>

#include "runtime/comm/process_link.h"
#include "runtime/rank_group.h"

namespace llmctl::runtime {

/// This process runs the rank that it has in `link`, which has tp * pp processes and outlives the
/// result. What a rank throws is rethrown in its process only: the others learn of it once it has
/// called ProcessGroup::fail.
std::unique_ptr<RankGroup> make_process_ranks(ProcessLink& link, int tp, int pp);

}  // namespace llmctl::runtime
