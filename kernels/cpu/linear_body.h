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
constexpr int kTokenTile = Simd::kWidth == 16 ? 6 : 3;
/// Activations that stay in L2 while a range of rows passes over them.
constexpr int64_t kTokenBlockBytes = int64_t{512} << 10;

/// kPrefetch: how many tiles share bringing in the rows after these; 0: none. `part`: which of them
/// this one is.
template <class Load, int kRows, int kTokens, int kPrefetch>
void tile(const LinearRows& args, int64_t row, int64_t token, int64_t part) {
  using Stored = typename Load::Stored;
  const int64_t k = args.k;
  const Stored* w = static_cast<const Stored*>(args.w) + row * k;
  const float* x = args.x + token * k;
  [[maybe_unused]] const Stored* next =
      w + kRows * k + (kPrefetch > 1 ? part * (k / kPrefetch) : 0);
  F acc[kRows][kTokens];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) acc[r][t] = Simd::zero();
  }
  int64_t i = 0;
  for (; i + Simd::kWidth <= k; i += Simd::kWidth) {
    F xs[kTokens];
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) xs[t] = Simd::load(x + t * k + i);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const F wide = Load::full(w + r * k + i);
      // The rows of the next tile: rows read side by side are too short for the hardware to run
      // ahead of them by itself. Into L2, whose queue of requests is longer than that of L1: on
      // Zen 4 that is 20 GB/s a core instead of 15.
      if (kPrefetch > 0) __builtin_prefetch(next + r * k + i / kPrefetch, 0, 2);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) acc[r][t] = Simd::fma(wide, xs[t], acc[r][t]);
    }
  }
  if (i < k) {
    F xs[kTokens];
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) xs[t] = Simd::load_n(x + t * k + i, k - i);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const F wide = Load::part(w + r * k + i, k - i);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) acc[r][t] = Simd::fma(wide, xs[t], acc[r][t]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const float bias = args.bias != nullptr ? args.bias[row + r] : 0.0F;
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      args.y[(token + t) * args.y_stride + row + r] = Simd::sum(acc[r][t]) + bias;
    }
  }
}

/// 1 .. kTokenTile tokens.
template <class Load, int kRows, int kPrefetch>
void token_tile(const LinearRows& args, int64_t row, int64_t token, int64_t count, int64_t part) {
  switch (count) {
    case 1:
      return tile<Load, kRows, 1, kPrefetch>(args, row, token, part);
    case 2:
      return tile<Load, kRows, 2, kPrefetch>(args, row, token, part);
    case 3:
      return tile<Load, kRows, 3, kPrefetch>(args, row, token, part);
    default:
      break;
  }
  if constexpr (kTokenTile > 3) {
    if (count == 4) return tile<Load, kRows, 4, kPrefetch>(args, row, token, part);
    if (count == 5) return tile<Load, kRows, 5, kPrefetch>(args, row, token, part);
    return tile<Load, kRows, 6, kPrefetch>(args, row, token, part);
  }
}

/// Tokens [begin, end) against kRows rows, in tiles as even as can be: two of 4 are faster than
/// one of 6 and one of 2. With more than two tiles the arithmetic takes longer than the memory.
template <class Load, int kRows>
void token_sweep(const LinearRows& args, int64_t row, int64_t begin, int64_t end, bool prefetch) {
  const int64_t tiles = (end - begin + kTokenTile - 1) / kTokenTile;
  int64_t token = begin;
  for (int64_t part = 0; part < tiles; ++part) {
    const int64_t left = tiles - part;
    const int64_t count = (end - token + left - 1) / left;
    if (prefetch && tiles == 1) {
      token_tile<Load, kRows, 1>(args, row, token, count, part);
    } else if (prefetch && part < 2) {
      token_tile<Load, kRows, 2>(args, row, token, count, part);
    } else {
      token_tile<Load, kRows, 0>(args, row, token, count, part);
    }
    token += count;
  }
}

template <class Load>
void rows(const LinearRows& args) {
  int64_t block = kTokenBlockBytes / (args.k * 4 + 1) / kTokenTile * kTokenTile;
  if (block < kTokenTile) block = kTokenTile;
  for (int64_t begin = 0; begin < args.num_tokens; begin += block) {
    const int64_t end = begin + block < args.num_tokens ? begin + block : args.num_tokens;
    int64_t row = args.row_begin;
    for (; row + kRowTile <= args.row_end; row += kRowTile) {
      token_sweep<Load, kRowTile>(args, row, begin, end, row + 2 * kRowTile <= args.n);
    }
    for (; row < args.row_end; ++row) token_sweep<Load, 1>(args, row, begin, end, false);
  }
}

void linear_rows(const LinearRows& args) {
  if (args.w_dtype == DType::F32) return rows<LoadF32>(args);
  if (args.w_dtype == DType::F16) return rows<LoadF16>(args);
  return rows<LoadBF16>(args);
}

}  // namespace
}  // namespace llmctl::kernels::cpu
