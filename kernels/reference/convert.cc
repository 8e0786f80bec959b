// Scalar casts: the definition that every vector path is held to, bit for bit.
#include "kernels/convert.h"

#include <array>
#include <cmath>
#include <limits>
#include <type_traits>

#include "kernels/cpu/convert_runs.h"

namespace llmctl::kernels {
namespace {

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace

float half_to_float(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000U} << 16;
  const uint32_t exponent = (bits >> 10) & 0x1FU;
  const uint32_t mantissa = bits & 0x3FFU;
  if (exponent == 0x1F) {
    const uint32_t quiet = mantissa != 0 ? 0x0040'0000U : 0U;
    return float_of(sign | 0x7F80'0000U | quiet | (mantissa << 13));
  }
  if (exponent == 0) {
    // A multiple of 2^-24 below 2^-14: exact as a float product.
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
    return float_of(sign | bits_of(magnitude));
  }
  return float_of(sign | ((exponent + 112U) << 23) | (mantissa << 13));
}

uint16_t float_to_half(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t sign = (bits >> 16) & 0x8000U;
  const uint32_t magnitude = bits & 0x7FFF'FFFFU;
  if (magnitude > 0x7F80'0000U) {
    return static_cast<uint16_t>(sign | 0x7E00U | ((magnitude >> 13) & 0x3FFU));
  }
  if (magnitude >= 0x477F'F000U) return static_cast<uint16_t>(sign | 0x7C00U);  // >= 65520
  if (magnitude < 0x3880'0000U) {  // below 2^-14: a multiple of 2^-24
    // Adding 0.5 puts the unit in the last place at 2^-24, so the addition rounds as wanted.
    const float rounded = float_of(magnitude) + 0.5F;
    return static_cast<uint16_t>(sign | (bits_of(rounded) - 0x3F00'0000U));
  }
  const uint32_t odd = (magnitude >> 13) & 1U;
  const uint32_t rounded = magnitude + 0xFFFU + odd - (112U << 23);
  return static_cast<uint16_t>(sign | (rounded >> 13));
}

uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7FFF'FFFFU) > 0x7F80'0000U) return static_cast<uint16_t>((bits >> 16) | 0x0040U);
  return static_cast<uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

namespace {

/// The float nearest to `value` towards zero, its last bit set when anything was cut off. A second
/// rounding of the result to a format at least two bits shorter is then the only rounding.
float to_float_odd(double value) {
  const float nearest = static_cast<float>(value);
  if (std::isnan(value) || static_cast<double>(nearest) == value) return nearest;
  uint32_t bits = bits_of(nearest);
  if (std::isinf(nearest)) return float_of((bits & 0x8000'0000U) | 0x7F7F'FFFFU);
  if (std::fabs(static_cast<double>(nearest)) > std::fabs(value)) --bits;
  return float_of(bits | 1U);
}

struct F64 {
  using Stored = double;
};
struct F32 {
  using Stored = float;
};
struct F16 {
  using Stored = uint16_t;
};
struct BF16 {
  using Stored = uint16_t;
};
struct F8E4M3 {
  using Stored = uint8_t;
};
struct F8E5M2 {
  using Stored = uint8_t;
};

float e4m3_to_float(uint8_t bits) {
  const uint32_t sign = uint32_t{bits & 0x80U} << 24;
  const uint32_t magnitude = bits & 0x7FU;
  if (magnitude == 0x7F) return float_of(sign | 0x7FC0'0000U);
  if (magnitude < 8) return float_of(sign | bits_of(static_cast<float>(magnitude) * 0x1p-9F));
  return float_of(sign | ((magnitude << 20) + (120U << 23)));
}

// E5M2 is the upper byte of a half.
float e5m2_to_float(uint8_t bits) { return half_to_float(static_cast<uint16_t>(bits << 8)); }

template <typename T>
float widen(typename T::Stored stored) {
  if constexpr (std::is_same_v<T, F32>) {
    return stored;
  } else if constexpr (std::is_same_v<T, F16>) {
    return half_to_float(stored);
  } else if constexpr (std::is_same_v<T, BF16>) {
    return bfloat16_to_float(stored);
  } else if constexpr (std::is_same_v<T, F8E4M3>) {
    return e4m3_to_float(stored);
  } else {
    static_assert(std::is_same_v<T, F8E5M2>);
    return e5m2_to_float(stored);
  }
}

template <typename To>
constexpr typename To::Stored largest() {
  if constexpr (std::is_same_v<To, F32>) {
    return std::numeric_limits<float>::max();
  } else {
    return std::is_same_v<To, F16> ? 0x7BFF : 0x7F7F;
  }
}

/// Rounds `value` to `To`; sets `overflowed` when it is finite and the result is not.
template <typename To>
typename To::Stored narrow(double value, bool clamp, bool* overflowed) {
  typename To::Stored result{};
  bool infinite = false;
  if constexpr (std::is_same_v<To, F32>) {
    result = static_cast<float>(value);
    infinite = std::isinf(result);
  } else {
    const float odd = to_float_odd(value);
    result = std::is_same_v<To, F16> ? float_to_half(odd) : float_to_bfloat16(odd);
    infinite = (result & 0x7FFF) == (std::is_same_v<To, F16> ? 0x7C00 : 0x7F80);
  }
  *overflowed = infinite && std::isfinite(value);
  if (*overflowed && clamp) {
    if constexpr (std::is_same_v<To, F32>) {
      return std::copysign(largest<F32>(), result);
    } else {
      return static_cast<uint16_t>((result & 0x8000) | largest<To>());
    }
  }
  return result;
}

template <typename From, typename To>
uint64_t run(void* dst, const void* src, int64_t count, bool clamp) {
  const auto* in = static_cast<const unsigned char*>(src);
  auto* out = static_cast<unsigned char*>(dst);
  uint64_t num_overflowed = 0;
  for (int64_t i = 0; i < count; ++i) {
    typename From::Stored stored;
    std::memcpy(&stored, in, sizeof stored);
    in += sizeof stored;
    typename To::Stored result;
    bool overflowed = false;
    if constexpr (std::is_same_v<From, F64>) {
      result = narrow<To>(stored, clamp, &overflowed);
    } else if constexpr (std::is_same_v<To, F32> || std::is_same_v<To, F64>) {
      result = static_cast<typename To::Stored>(widen<From>(stored));
    } else {
      const float value = widen<From>(stored);
      result = std::is_same_v<To, F16> ? float_to_half(value) : float_to_bfloat16(value);
      constexpr uint16_t kInfinity = std::is_same_v<To, F16> ? 0x7C00 : 0x7F80;
      overflowed = (result & 0x7FFF) == kInfinity && std::isfinite(value);
      if (overflowed && clamp) result = static_cast<uint16_t>((result & 0x8000) | largest<To>());
    }
    num_overflowed += overflowed ? 1 : 0;
    std::memcpy(out, &result, sizeof result);
    out += sizeof result;
  }
  return num_overflowed;
}

template <typename From>
cpu::ConvertRun run_from(DType dst) {
  switch (dst) {
    case DType::F64:
      if constexpr (!std::is_same_v<From, F64>) return run<From, F64>;
      return nullptr;
    case DType::F32:
      if constexpr (!std::is_same_v<From, F32>) return run<From, F32>;
      return nullptr;
    case DType::F16:
      if constexpr (!std::is_same_v<From, F16>) return run<From, F16>;
      return nullptr;
    case DType::BF16:
      if constexpr (!std::is_same_v<From, BF16>) return run<From, BF16>;
      return nullptr;
    default:
      return nullptr;
  }
}

}  // namespace

cpu::ConvertRun cpu::generic_convert_run(DType src, DType dst) {
  switch (src) {
    case DType::F64:
      return run_from<F64>(dst);
    case DType::F32:
      return run_from<F32>(dst);
    case DType::F16:
      return run_from<F16>(dst);
    case DType::BF16:
      return run_from<BF16>(dst);
    case DType::F8_E4M3:
      return run_from<F8E4M3>(dst);
    case DType::F8_E5M2:
      return run_from<F8E5M2>(dst);
    default:
      return nullptr;
  }
}

bool can_convert(DType src_dtype, DType dst_dtype) {
  return src_dtype == dst_dtype || cpu::generic_convert_run(src_dtype, dst_dtype) != nullptr;
}

}  // namespace llmctl::kernels
