#include "runtime/cuda/kv_cache.h"

#include <limits>

#include "formats/core/checked.h"
#include "formats/core/error.h"
#include "kernels/cuda/check.h"

namespace llmctl::runtime::cuda {

DeviceKvCache::DeviceKvCache(int device, int num_devices, int64_t num_layers, int64_t num_kv_heads,
                             int64_t head_dim, int64_t page_size, DType dtype, const Stream& stream)
    : PagedCache(page_size),
      device_(device),
      num_devices_(num_devices),
      num_layers_(num_layers),
      num_kv_heads_(num_kv_heads),
      head_dim_(head_dim),
      dtype_(dtype),
      stream_(stream) {}

uint64_t DeviceKvCache::layer_page_bytes() const {
  return static_cast<uint64_t>(2 * num_kv_heads_ * page_size() * head_dim_) * dtype_bytes(dtype_);
}

uint64_t DeviceKvCache::page_bytes() const {
  return static_cast<uint64_t>(num_layers_) * layer_page_bytes();
}

uint64_t DeviceKvCache::free_bytes() const {
  size_t free_bytes = 0, total_bytes = 0;
  LLMCTL_CUDA_CHECK(cudaSetDevice(device_));
  LLMCTL_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
  return uint64_t{free_bytes} * static_cast<uint64_t>(num_devices_);
}

void DeviceKvCache::reset(int64_t num_pages) {
  if (num_pages > std::numeric_limits<int32_t>::max()) {
    throw Error(ErrorCode::kEnvironment, "the KV cache would need more than 2^31 pages", "",
                "ask for fewer or shorter sequences");
  }
  if (num_pages <= capacity_pages()) return pages_.reset(capacity_pages());
  const auto bytes =
      checked_num_elements({num_layers_, num_pages, static_cast<int64_t>(layer_page_bytes())});
  if (!bytes) throw Error(ErrorCode::kEnvironment, "a KV cache of more than 2^63 bytes");
  LLMCTL_CUDA_CHECK(cudaSetDevice(device_));
  stream_.synchronize();
  pool_ = {};
  pages_.reset(0);
  pool_ = DeviceMemory(static_cast<size_t>(*bytes));
  pages_.reset(num_pages);
}

void DeviceKvCache::copy_page(int32_t to, int32_t from) {
  LLMCTL_CUDA_CHECK(cudaSetDevice(device_));
  const size_t bytes = layer_page_bytes();
  const size_t layer_bytes = bytes * static_cast<size_t>(capacity_pages());
  char* const base = pool_.as<char>();
  LLMCTL_CUDA_CHECK(cudaMemcpy2DAsync(base + static_cast<size_t>(to) * bytes, layer_bytes,
                                      base + static_cast<size_t>(from) * bytes, layer_bytes, bytes,
                                      static_cast<size_t>(num_layers_), cudaMemcpyDeviceToDevice,
                                      stream_.get()));
}

kernels::cuda::DevicePagedKv DeviceKvCache::layer(int64_t layer) const {
  const uint64_t layer_bytes = layer_page_bytes() * static_cast<uint64_t>(capacity_pages());
  return {.pool = pool_.as<char>() + static_cast<uint64_t>(layer) * layer_bytes,
          .page_stride = static_cast<int64_t>(layer_page_bytes() / dtype_bytes(dtype_)),
          .num_kv_heads = static_cast<int32_t>(num_kv_heads_),
          .head_dim = static_cast<int32_t>(head_dim_),
          .page_size = static_cast<int32_t>(page_size()),
          .dtype = dtype_};
}

}  // namespace llmctl::runtime::cuda
