// Argmax over rows: kSplits blocks per row, each leaves its best as one 64-bit key; the block that
// arrives last takes the largest. The key orders by logit, then by lower index, so the result does
// not depend on who arrives when. Bound: bytes of the logits.
#include "kernels/cuda/argmax.h"

#include "kernels/cuda/dispatch.cuh"

namespace llmctl::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSplits = 32;

/// Per row: a key per split, then the arrival counter (64 bits, so that rows stay aligned).
constexpr int64_t kRowWords = kSplits + 1;

/// Larger for a larger logit, then for a lower index; 0 is below everything.
__device__ __forceinline__ unsigned long long key_of(float value, uint32_t index) {
  if (isnan(value)) return 0;
  const uint32_t bits = __float_as_uint(value == 0.0F ? 0.0F : value);  // -0 equals 0
  const uint32_t ordered = (bits >> 31) != 0 ? ~bits : bits | 0x80000000U;
  return (static_cast<unsigned long long>(ordered) << 32) | (0xffffffffU - index);
}

__global__ void __launch_bounds__(kThreads)
    argmax_kernel(int32_t* ids, const void* logits, DType dtype, int64_t n, int64_t stride,
                  unsigned long long* scratch) {
  __shared__ unsigned long long best_of_warp[kThreads / 32];
  __shared__ bool last;
  trigger_dependents();
  wait_for_predecessor();
  const int64_t row = blockIdx.y;
  unsigned long long* const keys = scratch + row * kRowWords;
  const auto reduce = [&](unsigned long long key) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      key = max(key, __shfl_xor_sync(kFullWarp, key, offset));
    }
    if ((threadIdx.x & 31) == 0) best_of_warp[threadIdx.x >> 5] = key;
    __syncthreads();
    for (int i = 0; i < kThreads / 32; ++i) key = max(key, best_of_warp[i]);
    return key;
  };

  unsigned long long best = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += kSplits * kThreads) {
    best =
        max(best, key_of(load_element(logits, dtype, row * stride + i), static_cast<uint32_t>(i)));
  }
  best = reduce(best);
  if (threadIdx.x == 0) {
    keys[blockIdx.x] = best;
    __threadfence();  // the key before the arrival
    last = atomicAdd(keys + kSplits, 1ULL) == kSplits - 1;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  best = reduce(threadIdx.x < kSplits ? __ldcg(keys + threadIdx.x) : 0);
  if (threadIdx.x == 0) {
    ids[row] = best == 0 ? -1 : static_cast<int32_t>(0xffffffffU - static_cast<uint32_t>(best));
    keys[kSplits] = 0;
  }
}

}  // namespace

size_t argmax_scratch_bytes(int64_t num_rows) {
  return static_cast<size_t>(num_rows * kRowWords) * sizeof(unsigned long long);
}

void argmax(int32_t* ids, const void* logits, DType dtype, int64_t num_rows, int64_t n,
            int64_t stride, void* scratch, const LaunchStream& stream) {
  const char* const op = "argmax";
  const ProfileRange range(op);
  require(is_device_float(dtype), op, "logits are F32, F16 or BF16");
  require(n > 0 && n <= INT32_MAX && num_rows <= 65535, op, "1 .. 2^31 logits, up to 65535 rows");
  if (num_rows == 0) return;
  launch(argmax_kernel, dim3(kSplits, static_cast<unsigned>(num_rows)), kThreads, 0, stream, ids,
         logits, dtype, n, stride, static_cast<unsigned long long*>(scratch));
}

}  // namespace llmctl::kernels::cuda
