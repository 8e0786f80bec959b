// The device half of CUDA that llmctl's kernels use, on a CPU: keywords, vector types, built-in
// variables, barriers, shuffles, atomics, the tensor-core step and the launch. Threads of a block
// are fibers of one host thread (tests/cuda_emulation/block.h).
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#include <cuda_runtime_api.h>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
// Of one block at a time: a launch poisons the section before each of its blocks.
#define __shared__ static __attribute__((section("llmctl_cuda_shared")))

struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace llmctl::cuda_emulation {

/// All threads of the block that have not ended; what they wrote is visible afterwards.
void sync_block();

/// What the lanes of a warp exchange at one collective operation.
struct WarpSlots {
  static constexpr size_t kBytes = 32;
  alignas(16) unsigned char bytes[32][kBytes];

  template <typename T>
  T get(int lane) const {
    T value;
    std::memcpy(&value, bytes[lane], sizeof(T));
    return value;
  }
  template <typename T>
  void set(int lane, const T& value) {
    static_assert(sizeof(T) <= kBytes);
    std::memcpy(bytes[lane], &value, sizeof(T));
  }
};

/// Waits until every lane of `mask` has come to a call with the same `operation`; the last of them
/// runs `combine` on what all left. The slots stay until this lane's next exchange. Ends the launch
/// with an error when a lane of the mask has ended or waits elsewhere.
const WarpSlots& exchange(const char* operation, unsigned mask, const void* value, size_t bytes,
                          void (*combine)(WarpSlots&) = nullptr);
int lane_id();

/// Ends the launch with an error that says `what`.
[[noreturn]] void fail(const char* what);

/// PTX cp.async: 16 bytes, or 16 zeros; done no sooner than the thread waits for its group.
void copy_async_16(void* to, const void* from, bool inside);
void commit_async();
void wait_async(int groups_left);

/// The block's dynamic shared memory, exactly as large as the launch said.
void* dynamic_shared_memory();

/// Enqueues a kernel whose arguments `body` holds.
cudaError_t enqueue_kernel(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                           std::function<void()> body);

template <typename T>
T shuffle(const char* operation, unsigned mask, const T& value, int from) {
  return exchange(operation, mask, &value, sizeof value).template get<T>(from & 31);
}

/// PTX mma.m16n8k16 with F32 accumulators; operands are pairs of F16 or BF16.
void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool is_bf16);
/// PTX movmatrix.m8n8.trans.b16.
uint32_t movmatrix_trans(uint32_t a);
/// PTX ldmatrix.m8n8.x4.b16, and with .trans.
void ldmatrix_x4(uint32_t (&d)[4], const void* row, bool transposed);

}  // namespace llmctl::cuda_emulation

// Of the thread that is running.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

inline void __syncthreads() { llmctl::cuda_emulation::sync_block(); }
inline void __syncwarp(unsigned mask = 0xffffffffU) {
  llmctl::cuda_emulation::exchange("__syncwarp", mask, nullptr, 0);
}
inline void __threadfence() {}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  const int lane = llmctl::cuda_emulation::lane_id();
  return llmctl::cuda_emulation::shuffle("__shfl_xor_sync", mask, value, lane ^ lane_mask);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int lane) {
  return llmctl::cuda_emulation::shuffle("__shfl_sync", mask, value, lane);
}

// Blocks of a launch run one after the other, so a plain sum is atomic.
template <typename T>
T atomicAdd(T* p, std::type_identity_t<T> value) {
  const T before = *p;
  *p += value;
  return before;
}

template <typename T>
T __ldcg(const T* p) {
  return *p;
}
template <typename T>
T __ldg(const T* p) {
  return *p;
}

inline float __uint_as_float(unsigned v) { return std::bit_cast<float>(v); }
inline unsigned __float_as_uint(float v) { return std::bit_cast<unsigned>(v); }
inline float __expf(float v) { return std::exp(v); }
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = (static_cast<uint64_t>(y) << 32) | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned nibble = (selector >> (4 * i)) & 0xfU;
    unsigned byte = static_cast<unsigned>(bytes >> (8 * (nibble & 7U))) & 0xffU;
    if ((nibble & 8U) != 0) byte = (byte & 0x80U) != 0 ? 0xffU : 0U;
    result |= byte << (8 * i);
  }
  return result;
}

template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}
using std::isnan;

enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9,
};
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}

enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization = 6 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

template <typename... Params, typename... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                               Args&&... args) {
  std::tuple<std::decay_t<Params>...> values(std::forward<Args>(args)...);
  return llmctl::cuda_emulation::enqueue_kernel(config->gridDim, config->blockDim,
                                                config->dynamicSmemBytes, config->stream,
                                                [kernel, values] { std::apply(kernel, values); });
}
