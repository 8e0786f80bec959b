// F16 as CUDA's header offers it: each operation in F32 with one rounding to nearest even.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include <cuda_runtime.h>

namespace llmctl::cuda_emulation {

inline uint16_t half_bits(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value), sign = (bits >> 16) & 0x8000U;
  const uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) return 0x7fff;  // CUDA's NaN
  if (magnitude >= 0x477ff000U) return static_cast<uint16_t>(sign | 0x7c00U);
  if (magnitude < 0x38800000U) {
    // Subnormal: the F32 adder rounds at 2^-24 when 0.5 is added.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5F;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000U));
  }
  const uint32_t rounded = magnitude + 0xfffU + ((magnitude >> 13) & 1U);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000U) >> 13));
}

inline float half_value(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000U) << 16;
  const uint32_t magnitude = bits & 0x7fffU;
  if (magnitude >= 0x7c00U) return std::bit_cast<float>(sign | 0x7f800000U | (magnitude << 13));
  if (magnitude < 0x400U) {
    const float value = static_cast<float>(magnitude) * 0x1p-24F;
    return sign != 0 ? -value : value;
  }
  return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000U));
}

}  // namespace llmctl::cuda_emulation

struct __half {
  uint16_t bits;
  __half() = default;
  __half(float value) : bits(llmctl::cuda_emulation::half_bits(value)) {}
  operator float() const { return llmctl::cuda_emulation::half_value(bits); }
};
struct alignas(4) __half2 {
  __half x, y;
};

inline float __half2float(__half v) { return v; }
inline __half __float2half_rn(float v) { return {v}; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
inline __half2 __floats2half2_rn(float a, float b) { return {a, b}; }
inline __half2 __hsub2(__half2 a, __half2 b) {
  return {static_cast<float>(a.x) - static_cast<float>(b.x),
          static_cast<float>(a.y) - static_cast<float>(b.y)};
}
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
  return {std::fma(static_cast<float>(a.x), static_cast<float>(b.x), static_cast<float>(c.x)),
          std::fma(static_cast<float>(a.y), static_cast<float>(b.y), static_cast<float>(c.y))};
}
