// The paged KV cache on the device: where the row of one (position, head) lies.
#pragma once

#include <cstdint>

#include "formats/core/dtype.h"

namespace llmctl::kernels::cuda {

/// One layer's cache: pages of [K|V][num_kv_heads][page_size][head_dim], F16 or BF16. Not owned.
/// Offsets are 64-bit: page id x page_stride passes 2^31 elements from 32768 pages of 65536.
struct DevicePagedKv {
  void* pool = nullptr;     ///< first page of this layer; 16-byte aligned
  int64_t page_stride = 0;  ///< elements from one page to the next, a multiple of 8
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;   ///< a multiple of 8, at most 256
  int32_t page_size = 0;  ///< tokens per page, a power of two
  DType dtype = DType::F16;
};

/// Pages of every sequence. Arrays lie in device memory and are read by each launch, so that a
/// captured graph follows them as they change.
struct DeviceBlockTables {
  const int32_t* pages =
      nullptr;         ///< (num_sequences, stride): page of position p is [p / page_size]
  int64_t stride = 0;  ///< entries per sequence
};

}  // namespace llmctl::kernels::cuda
