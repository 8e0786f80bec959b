// Element conversion between dtypes, round to nearest even, NaN kept.
#pragma once

#include <cstdint>
#include <cstring>

#include "formats/core/dtype.h"

namespace llmctl::kernels {

/// What to do when a finite value does not fit the target dtype.
enum class Overflow {
  kInf,    ///< becomes infinity of its sign, and is counted
  kClamp,  ///< becomes the largest finite value of its sign, and is counted
};

struct CastStats {
  uint64_t overflowed = 0;  ///< finite sources whose target is not finite, or was clamped
  CastStats& operator+=(const CastStats& o) {
    overflowed += o.overflowed;
    return *this;
  }
};

/// Exact widening.
float half_to_float(uint16_t bits);
inline float bfloat16_to_float(uint16_t bits) {
  const uint32_t wide = uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}
/// Round to nearest even; NaN stays NaN (quiet), out of range becomes infinity.
uint16_t float_to_half(float value);
uint16_t float_to_bfloat16(float value);

/// dst[i] = cast(src[i]) for `count` elements; any alignment. Float to float only (F64, F32, F16,
/// BF16, F8 read-only), or src_dtype == dst_dtype of any kind (a copy). F64 to F16/BF16 rounds
/// once. Same result on every ISA.
CastStats convert(void* dst, DType dst_dtype, const void* src, DType src_dtype, int64_t count,
                  Overflow overflow);

/// Whether `convert` takes this pair.
bool can_convert(DType src_dtype, DType dst_dtype);

}  // namespace llmctl::kernels
