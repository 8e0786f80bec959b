// Blocks walk the array in lock step, kLoads x 16 bytes per thread at a time, as the products walk
// over weights. Bound: bytes.
#include "kernels/cuda/read_memory.h"

#include <algorithm>

#include "kernels/cuda/dispatch.cuh"

namespace llmctl::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLoads = 4;

__global__ void __launch_bounds__(kThreads)
    read_memory_kernel(uint32_t* sums, const uint4* data, int64_t count) {
  __shared__ uint32_t warp_sums[kThreads / 32];
  trigger_dependents();
  wait_for_predecessor();
  uint32_t sum = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads * kLoads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads * kLoads + threadIdx.x; i < count;
       i += stride) {
    uint4 v[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const int64_t at = i + j * kThreads;
      v[j] = at < count ? load_streaming(data + at) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int j = 0; j < kLoads; ++j) sum ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) sum ^= __shfl_xor_sync(kFullWarp, sum, offset);
  if ((threadIdx.x & 31) == 0) warp_sums[threadIdx.x >> 5] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kThreads / 32; ++i) sum ^= warp_sums[i];
  sums[blockIdx.x] = sum;
  for (int64_t i = blockIdx.x + gridDim.x; i < kReadSums; i += gridDim.x) sums[i] = 0;
}

}  // namespace

void read_memory(uint32_t* sums, const void* data, size_t bytes, const LaunchStream& stream) {
  const char* const op = "read_memory";
  const ProfileRange range(op);
  require(is_aligned(data, 16) && bytes % 16 == 0, op, "whole aligned pieces of 16 bytes");
  const auto grid = static_cast<unsigned>(std::min<int64_t>(stream.num_sms * 8, kReadSums));
  launch(read_memory_kernel, grid, kThreads, 0, stream, sums, static_cast<const uint4*>(data),
         static_cast<int64_t>(bytes / 16));
}

}  // namespace llmctl::kernels::cuda
