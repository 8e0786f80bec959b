// Arithmetic on numbers that came from a file: every operation says when it overflows.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "formats/core/dtype.h"

namespace llmctl {

/// Sizes of the axes of a tensor, slowest first; rank 0 is one element.
using Shape = std::vector<int64_t>;

inline std::optional<uint64_t> checked_add(uint64_t a, uint64_t b) {
  uint64_t r = 0;
  if (__builtin_add_overflow(a, b, &r)) return std::nullopt;
  return r;
}

inline std::optional<uint64_t> checked_mul(uint64_t a, uint64_t b) {
  uint64_t r = 0;
  if (__builtin_mul_overflow(a, b, &r)) return std::nullopt;
  return r;
}

/// Product of the axes; nothing when an axis is negative or the product passes int64_t.
inline std::optional<int64_t> checked_num_elements(const Shape& shape) {
  int64_t n = 1;
  for (const int64_t s : shape) {
    if (s < 0 || __builtin_mul_overflow(n, s, &n)) return std::nullopt;
  }
  return n;
}

/// Bytes of a dense tensor; nothing on overflow.
inline std::optional<uint64_t> checked_num_bytes(DType dtype, const Shape& shape) {
  const auto n = checked_num_elements(shape);
  if (!n) return std::nullopt;
  return checked_mul(static_cast<uint64_t>(*n), dtype_bytes(dtype));
}

/// Whether [offset, offset + length) lies inside [0, size).
inline bool is_inside(uint64_t offset, uint64_t length, uint64_t size) {
  return offset <= size && length <= size - offset;
}

}  // namespace llmctl
