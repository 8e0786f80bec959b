// The tensor-core step shared by products and attention.
#pragma once

#include "kernels/cuda/device.cuh"

namespace llmctl::kernels::cuda {

/// c += A B with A 16 x 16 row-major, B 16 x 8 column-major, F32 accumulators; PTX mma.m16n8k16.
/// Lane (g, t) = (lane / 4, lane % 4) holds A rows g, g+8 at k 2t.. and 2t+8.., B column g at the
/// same k, and c rows g, g+8 at columns 2t, 2t+1.
template <typename T>
__device__ __forceinline__ void mma_16x8x16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                            uint32_t a3, uint32_t b0, uint32_t b1);
template <>
__device__ __forceinline__ void mma_16x8x16<Half>(float (&c)[4], uint32_t a0, uint32_t a1,
                                                  uint32_t a2, uint32_t a3, uint32_t b0,
                                                  uint32_t b1) {
#if defined(LLMCTL_CUDA_EMULATION)
  cuda_emulation::mma_m16n8k16(c, {a0, a1, a2, a3}, {b0, b1}, false);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#endif
}
template <>
__device__ __forceinline__ void mma_16x8x16<Bfloat16>(float (&c)[4], uint32_t a0, uint32_t a1,
                                                      uint32_t a2, uint32_t a3, uint32_t b0,
                                                      uint32_t b1) {
#if defined(LLMCTL_CUDA_EMULATION)
  cuda_emulation::mma_m16n8k16(c, {a0, a1, a2, a3}, {b0, b1}, true);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#endif
}

/// Warps of a block that share the rows of a tile, each with its part of K.
constexpr int kMmaThreads = 256;
constexpr int kMmaWarps = kMmaThreads / 32;

/// Where such warps leave their sums of 16 rows for 8 * kTiles tokens.
template <int kTiles>
using WarpSums = float[kMmaWarps][8 * kTiles][16];

/// Adds up the warps' accumulators `c`, in the order of the warps, and calls take(sum, token, row
/// in the tile) once for each element of the tile; `c` is zero afterwards. One barrier is enough
/// when two `slice`s take turns: one is written again only after the barrier that every reader of
/// its last contents has passed.
template <int kTiles, typename Take>
__device__ __forceinline__ void sum_over_warps(WarpSums<kTiles>& slice, float (&c)[kTiles][4],
                                               const Take& take) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      slice[warp][8 * j + 2 * t + (i & 1)][g + 8 * (i >> 1)] = c[j][i];
      c[j][i] = 0.0F;
    }
  }
  __syncthreads();
  if (threadIdx.x < 8 * kTiles * 16) {
    const int token = threadIdx.x / 16, row = threadIdx.x % 16;
    float sum = 0.0F;
#pragma unroll
    for (int i = 0; i < kMmaWarps; ++i) sum += slice[i][token][row];
    take(sum, token, row);
  }
}

/// An 8 x 8 matrix of 16-bit elements, lane (g, t) holding row g at columns 2t, 2t+1, transposed.
__device__ __forceinline__ uint32_t transpose_8x8(uint32_t a) {
#if defined(LLMCTL_CUDA_EMULATION)
  return cuda_emulation::movmatrix_trans(a);
#else
  uint32_t d;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(d) : "r"(a));
  return d;
#endif
}

/// Four 8 x 8 matrices of 16-bit elements from shared memory: lane 8j + r gives the address of row
/// r of matrix j (16 bytes, aligned), and lane (g, t) gets of each its row g at columns 2t, 2t+1.
__device__ __forceinline__ void load_matrices(uint32_t (&d)[4], const void* row) {
#if defined(LLMCTL_CUDA_EMULATION)
  cuda_emulation::ldmatrix_x4(d, row, false);
#else
  const auto from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(from)
               : "memory");
#endif
}
/// The same of the transposed matrices: column g at rows 2t, 2t+1.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&d)[4], const void* row) {
#if defined(LLMCTL_CUDA_EMULATION)
  cuda_emulation::ldmatrix_x4(d, row, true);
#else
  const auto from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(from)
               : "memory");
#endif
}

}  // namespace llmctl::kernels::cuda
