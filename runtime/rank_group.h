// The ranks of one grid that this process runs, and how each of them reaches all others.
#pragma once

#include <functional>
#include <memory>
#include <vector>

namespace llmctl::runtime {

struct RankComm;  // runtime/rank_model.h

/// A grid of tp x pp ranks (rank = pp_rank * tp + tp_rank), some or all of which live in this
/// process. Ranks share no memory that the engine knows of: what one has to tell another goes
/// through its RankComm, so that ranks may as well be processes. One call at a time.
class RankGroup {
 public:
  virtual ~RankGroup() = default;

  /// tp * pp.
  virtual int world_size() const = 0;
  /// The ranks of this process, ascending; at least one.
  virtual const std::vector<int>& local_ranks() const = 0;

  /// Runs `body(rank, comm)` for every rank of this process, each on a thread of its own, and
  /// returns when all have ended. Every process of the grid must make the same call. The first
  /// failure wakes the ranks that wait for the failed one and is rethrown, an Error named `rank N:`
  /// unless it is a wrong request or an interruption.
  virtual void run(const std::function<void(int rank, const RankComm& comm)>& body) = 0;
};

/// All ranks of the grid as threads of this process.
std::unique_ptr<RankGroup> make_thread_ranks(int tp, int pp);

}  // namespace llmctl::runtime
