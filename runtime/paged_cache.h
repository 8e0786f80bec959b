// A rank's cache of keys and values as its scheduler sees it: numbered pages, wherever they lie.
#pragma once

#include <cstdint>

#include "runtime/page_pool.h"

namespace llmctl::runtime {

/// Page number p means the same tokens on every layer and, as all ranks take pages in the same
/// order, on every rank. Not thread-safe.
class PagedCache {
 public:
  virtual ~PagedCache() = default;

  /// Makes room for `num_pages`, all free; what was kept before is gone. Throws kEnvironment naming
  /// the size when it cannot be had.
  virtual void reset(int64_t num_pages) = 0;
  /// Everything that page `from` holds, on all layers, into page `to`.
  virtual void copy_page(int32_t to, int32_t from) = 0;
  /// Bytes of one page on all layers.
  virtual uint64_t page_bytes() const = 0;
  /// Bytes that all ranks together could use now where such caches lie; nothing is reserved.
  virtual uint64_t free_bytes() const = 0;

  int64_t page_size() const { return pages_.page_size(); }
  int64_t capacity_pages() const { return pages_.num_pages(); }
  /// Which pages are whose. What reset makes room for, this hands out.
  PagePool& pages() { return pages_; }
  int64_t pages_for(int64_t num_tokens) const {
    return num_tokens / page_size() + (num_tokens % page_size() != 0 ? 1 : 0);
  }

 protected:
  explicit PagedCache(int64_t page_size) : pages_(page_size) {}
  PagedCache(PagedCache&&) = default;

  PagePool pages_;
};

}  // namespace llmctl::runtime
