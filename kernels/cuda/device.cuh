// Device helpers shared by the kernels: 16-byte vectors, dtype conversion, reductions, waiting for
// the preceding kernel. Inline assembly stands here and in mma.cuh alone, each piece beside what
// tests/cuda_emulation runs in its place.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "formats/core/dtype.h"
#include "kernels/ops.h"

/// Declares `name`, a pointer to the block's dynamic shared memory.
#if defined(LLMCTL_CUDA_EMULATION)
#define LLMCTL_DYNAMIC_SHARED(type, name) \
  type* const name = static_cast<type*>(::llmctl::cuda_emulation::dynamic_shared_memory())
#else
#define LLMCTL_DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

namespace llmctl::kernels::cuda {

using Half = __half;
using Bfloat16 = __nv_bfloat16;

constexpr unsigned kFullWarp = 0xffffffffU;

/// Lets the next kernel of the stream start fetching its weights.
__device__ __forceinline__ void trigger_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Returns when every kernel before this one in the stream has ended and its writes are visible.
/// Every kernel calls it in every thread before it touches an activation, also in blocks that
/// leave early: then "B ended" implies "A ended" and hazards two kernels apart vanish.
__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// 16 bytes of weights, read once: no place in L1.
__device__ __forceinline__ uint4 load_streaming(const uint4* p) {
#if defined(LLMCTL_CUDA_EMULATION)
  return *p;
#else
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
#endif
}

/// Starts a copy of 16 bytes from global to shared memory, or of 16 zeros when not `inside`; `from`
/// must then still be an address of the array. Both 16-byte aligned.
__device__ __forceinline__ void copy_async_16(void* shared, const void* from, bool inside) {
#if defined(LLMCTL_CUDA_EMULATION)
  cuda_emulation::copy_async_16(shared, from, inside);
#else
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(inside ? 16 : 0)
               : "memory");
#endif
}
/// Ends a group of this thread's copies.
__device__ __forceinline__ void commit_async() {
#if defined(LLMCTL_CUDA_EMULATION)
  cuda_emulation::commit_async();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
/// Returns when all groups of this thread but the last `kLeft` are done.
template <int kLeft>
__device__ __forceinline__ void wait_async() {
#if defined(LLMCTL_CUDA_EMULATION)
  cuda_emulation::wait_async(kLeft);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#endif
}

template <typename T>
__device__ __forceinline__ float2 unpack2(uint32_t bits);
template <>
__device__ __forceinline__ float2 unpack2<Half>(uint32_t bits) {
  return __half22float2(reinterpret_cast<const __half2&>(bits));
}
template <>
__device__ __forceinline__ float2 unpack2<Bfloat16>(uint32_t bits) {
  // A bf16 is the upper half of an f32.
  return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000U)};
}

template <typename T>
__device__ __forceinline__ void unpack8(const uint4& v, float (&out)[8]) {
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = unpack2<T>(words[i]);
    out[2 * i] = pair.x;
    out[2 * i + 1] = pair.y;
  }
}

template <typename T>
__device__ __forceinline__ uint32_t pack2(float a, float b);
template <>
__device__ __forceinline__ uint32_t pack2<Half>(float a, float b) {
  const __half2 v = __floats2half2_rn(a, b);
  return reinterpret_cast<const uint32_t&>(v);
}
template <>
__device__ __forceinline__ uint32_t pack2<Bfloat16>(float a, float b) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
  return reinterpret_cast<const uint32_t&>(v);
}

/// One element of a F32, F16 or BF16 array. The dtype is the same for the whole grid, so the branch
/// costs nothing beside the load; it saves an instance of every small kernel per dtype.
__device__ __forceinline__ float load_element(const void* p, DType dtype, int64_t i) {
  if (dtype == DType::F32) return static_cast<const float*>(p)[i];
  if (dtype == DType::F16) return __half2float(static_cast<const Half*>(p)[i]);
  return __bfloat162float(static_cast<const Bfloat16*>(p)[i]);
}

__device__ __forceinline__ void store_element(void* p, DType dtype, int64_t i, float value) {
  if (dtype == DType::F32) {
    static_cast<float*>(p)[i] = value;
  } else if (dtype == DType::F16) {
    static_cast<Half*>(p)[i] = __float2half_rn(value);
  } else {
    static_cast<Bfloat16*>(p)[i] = __float2bfloat16_rn(value);
  }
}

/// Eight consecutive elements. Requires: p + 8i is 16-byte aligned.
__device__ __forceinline__ void load_8(const void* p, DType dtype, int64_t i, float (&out)[8]) {
  if (dtype == DType::F32) {
    const float4 a = static_cast<const float4*>(p)[2 * i];
    const float4 b = static_cast<const float4*>(p)[2 * i + 1];
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
  } else if (dtype == DType::F16) {
    unpack8<Half>(static_cast<const uint4*>(p)[i], out);
  } else {
    unpack8<Bfloat16>(static_cast<const uint4*>(p)[i], out);
  }
}

__device__ __forceinline__ void store_8(void* p, DType dtype, int64_t i, const float (&in)[8]) {
  if (dtype == DType::F32) {
    static_cast<float4*>(p)[2 * i] = make_float4(in[0], in[1], in[2], in[3]);
    static_cast<float4*>(p)[2 * i + 1] = make_float4(in[4], in[5], in[6], in[7]);
    return;
  }
  const auto pack = [&](int j) {
    return dtype == DType::F16 ? pack2<Half>(in[j], in[j + 1]) : pack2<Bfloat16>(in[j], in[j + 1]);
  };
  static_cast<uint4*>(p)[i] = make_uint4(pack(0), pack(2), pack(4), pack(6));
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(kFullWarp, v, offset);
  return v;
}

/// Sum over the block, the same bits in every thread. `scratch` holds 32 floats and may be reused
/// right after. Requires: blockDim.x a multiple of 32; every thread calls it.
__device__ __forceinline__ float block_sum(float v, float* scratch) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  v = warp_sum(v);
  __syncthreads();
  if (lane == 0) scratch[warp] = v;
  __syncthreads();
  // One load and five shuffles beat a loop of dependent loads.
  return warp_sum(lane < warps ? scratch[lane] : 0.0F);
}

/// 2^x to about 2 units in the last place, subnormals as zero: one instruction, no slow path.
__device__ __forceinline__ float exp2_fast(float x) {
#if defined(LLMCTL_CUDA_EMULATION)
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

/// The formulas of kernels/ops.h in F32.
__device__ __forceinline__ float activate(float x, ActivationOp op) {
  switch (op) {
    case ActivationOp::kRelu:
      return x < 0.0F ? 0.0F : x;  // NaN stays NaN
    case ActivationOp::kGelu:
      return 0.5F * x * (1.0F + erff(x * 0.70710678118654752F));
    case ActivationOp::kGeluTanh:
      return 0.5F * x * (1.0F + tanhf(0.79788456080286536F * (x + 0.044715F * x * x * x)));
    case ActivationOp::kSilu:
      return x / (1.0F + __expf(-x));
    case ActivationOp::kQuickGelu:
      return x / (1.0F + __expf(-1.702F * x));
  }
  return x;
}

}  // namespace llmctl::kernels::cuda
