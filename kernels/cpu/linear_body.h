// The matrix product for one instruction set, written once over `Simd` (include simd_*.h first).
//
// Every output is one vector accumulator, k ascending, kWidth products per step, the last step
// padded with zeros, then one fixed horizontal sum and the bias. Tiles of several rows and tokens
// only share loads: they never change that order, so a result does not depend on which other rows
// or tokens are computed with it.
#pragma once

#include "kernels/cpu/linear_rows.h"

namespace llmctl::kernels::cpu {
namespace {

using F = Simd::F;

struct LoadF32 {
  using Stored = float;
  static F full(const float* p) { return Simd::load(p); }
  static F part(const float* p, int64_t n) { return Simd::load_n(p, n); }
};
struct LoadF16 {
  using Stored = uint16_t;
  static F full(const uint16_t* p) { return Simd::load_f16(p); }
  static F part(const uint16_t* p, int64_t n) { return Simd::load_f16_n(p, n); }
};
struct LoadBF16 {
  using Stored = uint16_t;
  static F full(const uint16_t* p) { return Simd::load_bf16(p); }
  static F part(const uint16_t* p, int64_t n) { return Simd::load_bf16_n(p, n); }
};

/// Rows of weights and tokens of activations whose accumulators are in registers at once.
constexpr int kRowTile = 4;
constexpr int kTokenTile = Simd::kWidth == 16 ? 6 : 2;
/// Bytes of activations that stay in L2 while a range of rows passes over them.
constexpr int64_t kTokenBlockBytes = int64_t{384} << 10;

template <class Load, int kRows, int kTokens, bool kPrefetch>
void tile(const LinearRows& args, int64_t row, int64_t token) {
  using Stored = typename Load::Stored;
  const int64_t k = args.k;
  const Stored* w = static_cast<const Stored*>(args.w) + row * k;
  const float* x = args.x + token * k;
  F acc[kRows][kTokens];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) acc[r][t] = Simd::zero();
  }
  int64_t i = 0;
  for (; i + Simd::kWidth <= k; i += Simd::kWidth) {
    F wide[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      wide[r] = Load::full(w + r * k + i);
      // The rows of the next tile at the same column: with rows read side by side the hardware
      // sees no stream long enough to run ahead by itself.
      if (kPrefetch) __builtin_prefetch(w + (kRows + r) * k + i, 0, 3);
    }
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      const F xv = Simd::load(x + t * k + i);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) acc[r][t] = Simd::fma(wide[r], xv, acc[r][t]);
    }
  }
  if (i < k) {
    F wide[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) wide[r] = Load::part(w + r * k + i, k - i);
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      const F xv = Simd::load_n(x + t * k + i, k - i);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) acc[r][t] = Simd::fma(wide[r], xv, acc[r][t]);
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const float bias = args.bias != nullptr ? args.bias[row + r] : 0.0F;
      args.y[(token + t) * args.y_stride + row + r] = Simd::sum(acc[r][t]) + bias;
    }
  }
}

/// All tokens in [begin, end) against kRows rows.
template <class Load, int kRows, bool kPrefetch>
void token_sweep(const LinearRows& args, int64_t row, int64_t begin, int64_t end) {
  int64_t token = begin;
  for (; token + kTokenTile <= end; token += kTokenTile) {
    tile<Load, kRows, kTokenTile, kPrefetch>(args, row, token);
  }
  if constexpr (kTokenTile > 2) {
    for (; token + 2 <= end; token += 2) tile<Load, kRows, 2, kPrefetch>(args, row, token);
  }
  for (; token < end; ++token) tile<Load, kRows, 1, kPrefetch>(args, row, token);
}

template <class Load>
void rows(const LinearRows& args) {
  int64_t block = kTokenBlockBytes / (args.k * 4 + 1) / kTokenTile * kTokenTile;
  if (block < kTokenTile) block = kTokenTile;
  for (int64_t begin = 0; begin < args.num_tokens; begin += block) {
    const int64_t end = begin + block < args.num_tokens ? begin + block : args.num_tokens;
    int64_t row = args.row_begin;
    for (; row + kRowTile <= args.row_end; row += kRowTile) {
      if (end - begin <= kTokenTile && row + 2 * kRowTile <= args.n) {
        token_sweep<Load, kRowTile, true>(args, row, begin, end);
      } else {
        token_sweep<Load, kRowTile, false>(args, row, begin, end);
      }
    }
    for (; row < args.row_end; ++row) token_sweep<Load, 1, false>(args, row, begin, end);
  }
}

void linear_rows(const LinearRows& args) {
  if (args.w_dtype == DType::F32) return rows<LoadF32>(args);
  if (args.w_dtype == DType::F16) return rows<LoadF16>(args);
  return rows<LoadBF16>(args);
}

}  // namespace
}  // namespace llmctl::kernels::cpu
