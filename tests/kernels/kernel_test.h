// What the kernel tests share: seeded inputs, bitwise comparison, and the one table of tolerances.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <vector>

#include "formats/core/dtype.h"
#include "kernels/convert.h"
#include "kernels/panels.h"

namespace llmctl::test {

/// How far each op may be from its F64 reference: |got - want| <= absolute * scale + relative *
/// |want|, where `scale` is what the op's terms sum to in magnitude (docs/numerics.md).
struct Tolerance {
  double absolute, relative;
};
constexpr Tolerance kNormTolerance{1e-6, 4e-7};
constexpr Tolerance kLinearTolerance{6e-7, 1e-7};
constexpr Tolerance kActivationTolerance{3e-8, 3e-7};
constexpr Tolerance kRotaryTolerance{2e-7, 0};
constexpr Tolerance kAttentionTolerance{2e-6, 0};

inline std::vector<float> random_floats(size_t count, uint64_t seed, float scale = 1.0F) {
  std::mt19937_64 rng(seed);
  std::normal_distribution<float> normal(0.0F, scale);
  std::vector<float> values(count);
  for (float& value : values) value = normal(rng);
  return values;
}

/// `values` in a 4- or 2-byte float dtype.
inline std::vector<unsigned char> stored_as(const std::vector<float>& values, DType dtype) {
  std::vector<unsigned char> bytes(values.size() * dtype_bytes(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::F32) {
      std::memcpy(bytes.data() + 4 * i, &values[i], 4);
    } else {
      const uint16_t bits = dtype == DType::F16 ? kernels::float_to_half(values[i])
                                                : kernels::float_to_bfloat16(values[i]);
      std::memcpy(bytes.data() + 2 * i, &bits, 2);
    }
  }
  return bytes;
}

/// A row-major matrix packed as panels.
struct PackedMatrix : kernels::PanelMatrix {
  std::vector<unsigned char> bytes;

  PackedMatrix(const std::vector<unsigned char>& row_major, DType dtype_, int64_t rows_,
               int64_t columns_)
      : PackedMatrix(row_major.data(), dtype_, rows_, columns_) {}
  PackedMatrix(const unsigned char* row_major, DType dtype_, int64_t rows_, int64_t columns_)
      : bytes(static_cast<size_t>(kernels::matrix_panel_bytes(dtype_, rows_, columns_).value())) {
    kernels::reference::pack_panels(bytes.data(), row_major, dtype_, rows_, columns_);
    data = bytes.data();
    dtype = dtype_;
    rows = rows_;
    columns = columns_;
  }
  PackedMatrix(const PackedMatrix&) = delete;
};

template <typename T>
bool same_bytes(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

/// Largest excess over the tolerance, as a multiple of it; <= 1 passes. NaN must meet NaN and
/// infinity itself.
inline double worst_error(std::span<const float> got, std::span<const float> want,
                          Tolerance tolerance, double scale) {
  double worst = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    if (std::isnan(want[i]) && std::isnan(got[i])) continue;
    if (got[i] == want[i]) continue;
    const double allowed = tolerance.absolute * scale +
                           tolerance.relative * std::fabs(static_cast<double>(want[i])) + 1e-45;
    const double error = std::fabs(static_cast<double>(got[i]) - static_cast<double>(want[i]));
    worst = std::isfinite(error) ? std::max(worst, error / allowed) : INFINITY;
  }
  return worst;
}

}  // namespace llmctl::test
