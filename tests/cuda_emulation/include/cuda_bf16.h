// BF16 as CUDA's header offers it: each operation in F32 with one rounding to nearest even.
#pragma once

#include <bit>
#include <cstdint>

#include <cuda_runtime.h>

namespace llmctl::cuda_emulation {

inline uint16_t bfloat16_bits(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return 0x7fff;  // CUDA's NaN
  return static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

inline float bfloat16_value(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

}  // namespace llmctl::cuda_emulation

struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float value) : bits(llmctl::cuda_emulation::bfloat16_bits(value)) {}
  operator float() const { return llmctl::cuda_emulation::bfloat16_value(bits); }
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline float __bfloat162float(__nv_bfloat16 v) { return v; }
inline __nv_bfloat16 __float2bfloat16_rn(float v) { return {v}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {a, b}; }
inline __nv_bfloat162 __hsub2(__nv_bfloat162 a, __nv_bfloat162 b) {
  return {static_cast<float>(a.x) - static_cast<float>(b.x),
          static_cast<float>(a.y) - static_cast<float>(b.y)};
}
