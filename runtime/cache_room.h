// How much room the ranks' KV caches have, agreed upon by all of them.
#pragma once

#include <cstdint>

#include "runtime/batch_loop.h"
#include "runtime/rank_model.h"

namespace llmctl::runtime {

/// Pages that a cache may have at most, the same number on every rank: those that fit into
/// kv_memory or, when that is 0, into half of the memory that the poorest rank has free. Forgets
/// what the caches hold if the call before failed on any rank. Collective.
class CacheRoom {
 public:
  CacheRoom(RankModel& model, const RankComm& comm, const BatchOptions& options);
  /// Until `finish`, the cache counts as damaged.
  void finish();

  int64_t max_pages() const { return max_pages_; }
  uint64_t page_bytes() const { return page_bytes_; }  ///< of all ranks together

  /// Makes sure that there are `num_pages`, or as many as may be; forgets the prefixes when the
  /// cache must grow for it. Requires: no page is owned.
  void grow_to(int64_t num_pages);

 private:
  PagedCache& cache_;
  int64_t max_pages_ = 0;
  uint64_t page_bytes_ = 0;
};

}  // namespace llmctl::runtime
