// How a weight matrix is quantised: symmetric integers, and what shares a scale.
#pragma once

#include <cstdint>
#include <span>

namespace llmctl::kernels {

/// w = scale * q with q in [-127, 127] (8 bits) or [-7, 7] (4 bits).
struct Quantization {
  int bits = 0;            ///< 8 or 4; 0: the matrix is not quantised
  int64_t group_size = 0;  ///< neighbouring columns of a row that share a scale; 0: all of them

  explicit operator bool() const { return bits != 0; }
  bool operator==(const Quantization&) const = default;
};

/// The group sizes that there are: 32, 64, 128, 256.
std::span<const int64_t> quantization_group_sizes();

/// Largest |q|.
constexpr int quantization_bound(const Quantization& q) { return q.bits == 8 ? 127 : 7; }

}  // namespace llmctl::kernels
