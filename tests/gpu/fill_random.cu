#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "tests/gpu/harness.h"

namespace llmctl::gpu {

namespace {

__device__ float random_at(uint64_t seed, uint64_t i, float deviation) {
  uint64_t h = (i + seed * 0x9e3779b97f4a7c15ULL) * 0xbf58476d1ce4e5b9ULL;
  h = (h ^ (h >> 29)) * 0x94d049bb133111ebULL;
  h ^= h >> 32;
  const float a = static_cast<float>(h & 0xffff) / 32768.0F - 1.0F;
  const float b = static_cast<float>((h >> 16) & 0xffff) / 32768.0F - 1.0F;
  return (a + b) * 1.2247449F * deviation;
}

__global__ void fill_random_kernel(void* data, DType dtype, int64_t count, float deviation,
                                   uint64_t seed) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const float v = random_at(seed, static_cast<uint64_t>(i), deviation);
    if (dtype == DType::F32) {
      static_cast<float*>(data)[i] = v;
    } else if (dtype == DType::F16) {
      static_cast<__half*>(data)[i] = __float2half_rn(v);
    } else {
      static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16_rn(v);
    }
  }
}

}  // namespace

void fill_random(void* data, DType dtype, int64_t count, float deviation, uint64_t seed,
                 cudaStream_t stream) {
  fill_random_kernel<<<1024, 256, 0, stream>>>(data, dtype, count, deviation, seed);
  LLMCTL_CUDA_CHECK(cudaGetLastError());
}

}  // namespace llmctl::gpu
