// The F64-summed product for one instruction set, written once over `Simd` (include simd_*.h
// first). Each output is one lane of one accumulator, so vector widths and tiles change nothing.
#pragma once

#include "kernels/cpu/product_tile.h"

namespace llmctl::kernels::cpu {
namespace {

template <int kRows>
void product_rows(const ProductTile& args, int64_t row) {
  using D = Simd::D;
  const int64_t k = args.k;
  const double* left = args.left + row * k;
  for (int64_t j = 0; j < args.num_columns; j += Simd::kWidth) {
    D sums[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) sums[r] = Simd::zero_d();
    const double* right = args.panel + j;
    for (int64_t t = 0; t < k; ++t, right += kPanelColumns) {
      const D factor = Simd::load_d(right);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        sums[r] = Simd::fma_d(Simd::set1_d(left[r * k + t]), factor, sums[r]);
      }
    }
    const int64_t rest = args.num_columns - j;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      float* out = args.out + (row + r) * args.out_stride + j;
      const Simd::F rounded = Simd::narrow_d(sums[r]);
      rest < Simd::kWidth ? Simd::store_n(out, rounded, rest) : Simd::store(out, rounded);
    }
  }
}

void product_tile(const ProductTile& args) {
  if (args.num_rows == kProductRows) return product_rows<kProductRows>(args, 0);
  for (int64_t row = 0; row < args.num_rows; ++row) product_rows<1>(args, row);
}

}  // namespace
}  // namespace llmctl::kernels::cpu
