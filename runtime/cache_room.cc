#include "runtime/cache_room.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "formats/core/error.h"

namespace llmctl::runtime {
namespace {

struct RankRoom {
  uint64_t page_bytes = 0;
  uint64_t free_bytes = 0;
  int64_t capacity_pages = 0;
  bool damaged = false;
};

}  // namespace

CacheRoom::CacheRoom(RankModel& model, const RankComm& comm, const BatchOptions& options)
    : cache_(model.cache()) {
  RankRoom mine;
  mine.page_bytes = cache_.page_bytes();
  mine.free_bytes = cache_.free_bytes();
  mine.capacity_pages = cache_.capacity_pages();
  mine.damaged = cache_.pages().is_in_use();
  std::vector<RankRoom> all(static_cast<size_t>(comm.world->size()));
  comm.world->all_gather(all.data(), &mine, sizeof mine);
  uint64_t free_bytes = std::numeric_limits<uint64_t>::max() / 4, held_bytes = 0;
  bool damaged = false;
  int64_t capacity = 0;
  for (const RankRoom& room : all) {
    page_bytes_ += room.page_bytes;
    held_bytes += room.page_bytes * static_cast<uint64_t>(room.capacity_pages);
    free_bytes = std::min(free_bytes, room.free_bytes);
    capacity = std::max(capacity, room.capacity_pages);
    damaged |= room.damaged || room.capacity_pages != mine.capacity_pages;
  }
  const uint64_t bytes = options.kv_memory > 0 ? options.kv_memory : (free_bytes + held_bytes) / 2;
  max_pages_ = static_cast<int64_t>(std::min<uint64_t>(bytes / std::max<uint64_t>(page_bytes_, 1),
                                                       std::numeric_limits<int32_t>::max()));
  if (damaged) cache_.reset(capacity);
  max_pages_ = std::max(max_pages_, cache_.capacity_pages());
  cache_.pages().begin_use();
}

void CacheRoom::finish() { cache_.pages().end_use(); }

void CacheRoom::grow_to(int64_t num_pages) {
  const int64_t wanted = std::min(num_pages, max_pages_);
  if (wanted <= cache_.capacity_pages()) return;
  cache_.reset(wanted);
  cache_.pages().begin_use();
}

}  // namespace llmctl::runtime
