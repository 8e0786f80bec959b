// One rank's paged cache of keys and values on a GPU.
#pragma once

#include <cstdint>

#include "formats/core/dtype.h"
#include "kernels/cuda/paged_kv.h"
#include "runtime/cuda/memory.h"
#include "runtime/paged_cache.h"

namespace llmctl::runtime::cuda {

/// Pages of [K|V][num_kv_heads][page_size][head_dim] for each layer, one layer after the other.
/// Belongs to the device that was current when it was made.
class DeviceKvCache final : public PagedCache {
 public:
  /// `stream` orders copies of pages with the passes and must outlive the cache. `num_devices`: of
  /// all ranks of this process. Requires: page_size a power of two, head_dim a multiple of 8.
  DeviceKvCache(int device, int num_devices, int64_t num_layers, int64_t num_kv_heads,
                int64_t head_dim, int64_t page_size, DType dtype, const Stream& stream);

  void reset(int64_t num_pages) override;
  void copy_page(int32_t to, int32_t from) override;
  uint64_t page_bytes() const override;
  uint64_t free_bytes() const override;

  /// Valid until the next reset that makes more room.
  kernels::cuda::DevicePagedKv layer(int64_t layer) const;

 private:
  uint64_t layer_page_bytes() const;

  int device_, num_devices_;
  int64_t num_layers_, num_kv_heads_, head_dim_;
  DType dtype_;
  const Stream& stream_;
  DeviceMemory pool_;
};

}  // namespace llmctl::runtime::cuda
