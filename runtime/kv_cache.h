// The keys and values that one rank keeps of its layers, in pages that sequences own by number.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/ops.h"
#include "runtime/paged_cache.h"

namespace llmctl::runtime {

/// Pages of [K|V][num_kv_heads][page_size][head_dim] in one dtype for each of `num_layers` layers.
/// Behind them a page has room for what a recurrent layer carries from the
/// last token in it to the next: whoever owns or shares the page has the state that belongs to its
/// end. Owns its memory. Not thread-safe.
class KvCache final : public PagedCache {
 public:
  /// Requires: all sizes at least 1 (`num_layers` and `state_width` may be 0); a dtype of F32, F16
  /// or BF16. What a recurrent layer carries is F32 all the same.
  KvCache(int64_t num_layers, int64_t num_kv_heads, int64_t head_dim, int64_t page_size,
          int64_t state_width = 0, DType dtype = DType::F32);

  /// Memory is touched only when a page is first written.
  void reset(int64_t num_pages) override;
  void copy_page(int32_t to, int32_t from) override;
  uint64_t page_bytes() const override;
  uint64_t free_bytes() const override;

  /// What the attention kernels need of local layer `layer`. Valid until the next reset.
  kernels::PagedKv layer(int64_t layer) const;

  /// The `state_width` floats of a page on local layer `layer`. Valid until the next reset.
  float* state(int64_t layer, int32_t page) const;

 private:
  struct Free {
    void operator()(std::byte* p) const;
  };

  int64_t num_layers_, num_kv_heads_, head_dim_;
  DType dtype_;
  int64_t layer_page_bytes_ = 0, state_offset_ = 0;  // of one page on one layer, in bytes
  std::unique_ptr<std::byte[], Free> pool_;
};

}  // namespace llmctl::runtime
