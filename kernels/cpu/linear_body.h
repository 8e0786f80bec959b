// The matrix product for one instruction set, written once over `Simd` (include simd_*.h first).
//
// A lane is a row of the panel and every output is one accumulator, k ascending, then the bias.
// What is computed side by side only shares loads, so that a result depends on nothing else.
//
// Few tokens are bound by memory: several panels are read side by side, each prefetched, because
// what counts is how many lines are under way. Many tokens are bound by arithmetic: they pass tile
// by tile over a few panels, which stay in L2, and a tile is so large that widening the weights is
// a few per cent of its work (Zen 4: 98 % of the FMA peak; blocks of columns that were widened into
// L1 first reached 85 %, because sums went out and in).
#pragma once

#include "kernels/cpu/linear_panels.h"

namespace llmctl::kernels::cpu {
namespace {

using F = Simd::F;

/// Registers to the rows of a panel.
constexpr int kVectors = static_cast<int>(kPanelRows / Simd::kWidth);
/// Most tokens whose sums are in registers at once.
constexpr int kMostTokens = Simd::kWidth == 16 ? kMostTileTokens : Simd::kWidth == 8 ? 6 : 4;
/// The second columns of a line wait in registers, of which AVX2 has 16.
constexpr int kMostBF16Tokens = Simd::kWidth == 8 ? 5 : kMostTokens;

/// Panels whose sums are in registers at once, with those of `tokens` tokens.
constexpr int panels_for(int tokens) {
  if (Simd::kWidth == 16) return tokens <= 6 ? 4 : 24 / tokens;
  if (Simd::kWidth == 8) return tokens == 1 ? 4 : tokens <= 3 ? 6 / tokens : 1;
  return 1;
}

// How a vector of rows is read, kGroup columns of it at once, and multiplied: in kSteps steps, each
// with one activation of every token.
struct F32Products {
  using Activation = float;
  using Wide = F;
  static F broadcast(float activation) { return Simd::set1(activation); }
  static F add_product(F weights, F activation, F sum) {
    return Simd::fma(weights, activation, sum);
  }
};
struct LoadF32 : F32Products {
  using Stored = float;
  using Raw = F;
  static constexpr int kGroup = 1, kSteps = 1;
  static Raw load(const float* p) { return Simd::load(p); }
  template <int kStep>
  static F widen(Raw raw) {
    return raw;
  }
};
struct LoadF16 : F32Products {
  using Stored = uint16_t;
  using Raw = F;
  static constexpr int kGroup = 1, kSteps = 1;
  static Raw load(const uint16_t* p) { return Simd::load_f16(p); }
  template <int kStep>
  static F widen(Raw raw) {
    return raw;
  }
};
struct LoadBF16 : F32Products {
  using Stored = uint16_t;
  using Raw = Simd::Pairs;
  static constexpr int kGroup = 2, kSteps = 2;
  static Raw load(const uint16_t* p) { return Simd::load_pairs(p); }
  template <int kStep>
  static F widen(Raw raw) {
    return kStep == 0 ? Simd::widen_low(raw) : Simd::widen_high(raw);
  }
};

/// Bytes ahead of the reading at which lines of a panel are asked for, into L2: its queue of
/// requests is longer than that of L1, which on Zen 4 with two threads is 48 GB/s instead of 44.
constexpr int64_t kAheadBytes = 4096;

/// Whether all columns of a group are there, as a type.
template <bool kWhole>
struct GroupKind {
  static constexpr bool kIsWhole = kWhole;
};

/// A number of tokens, as a type.
template <int kCount>
struct Count {
  static constexpr int kValue = kCount;
};

template <class Load>
struct Tile {
  const typename Load::Stored* w;      ///< of the first panel
  int64_t panel_stride;                ///< elements from one panel to the next
  const typename Load::Activation* x;  ///< (steps, tokens)
  int64_t columns;
  float* y;  ///< of the first row and token
  int64_t y_stride;
  int64_t num_rows;   ///< of the panels, that exist
  const float* bias;  ///< of the first row; null: none
};

inline int64_t lanes_left(int64_t num_rows, int panel, int vector) {
  return num_rows - panel * kPanelRows - vector * Simd::kWidth;
}

/// The rows from `p` on, zeros where there are none.
inline F load_rows(const float* p, int64_t lanes) {
  if (lanes >= Simd::kWidth) return Simd::load(p);
  return lanes > 0 ? Simd::load_n(p, lanes) : Simd::zero();
}
inline void store_rows(float* p, F v, int64_t lanes) {
  if (lanes >= Simd::kWidth) return Simd::store(p, v);
  if (lanes > 0) Simd::store_n(p, v, lanes);
}

template <class Load, int kPanels, int kTokens>
void run_tile(const Tile<Load>& args) {
  using Stored = typename Load::Stored;
  using Wide = typename Load::Wide;
  constexpr int kGroup = Load::kGroup, kSteps = Load::kSteps;
  F acc[kPanels][kVectors][kTokens];
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 24
      for (int t = 0; t < kTokens; ++t) acc[p][v][t] = Simd::zero();
    }
  }

  const int64_t stride = args.panel_stride;
  const Stored* line = args.w;
  const typename Load::Activation* x = args.x;
  // Inlined by order: a function that is called has its sums in memory.
  // One step of all panels and tokens:
  const auto add_step = [&](const Wide(&wide)[kPanels][kVectors],
                            const typename Load::Activation* step) __attribute__((always_inline)) {
#pragma GCC unroll 24
    for (int t = 0; t < kTokens; ++t) {
      const Wide activation = Load::broadcast(step[t]);
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          acc[p][v][t] = Load::add_product(wide[p][v], activation, acc[p][v][t]);
        }
      }
    }
  };
  const auto add_group = [&](int64_t ahead, auto kind) __attribute__((always_inline)) {
    typename Load::Raw raw[kPanels][kVectors];
    Wide wide[kPanels][kVectors];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      const Stored* at = line + p * stride;
      __builtin_prefetch(at + ahead, 0, 2);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        raw[p][v] = Load::load(at + v * Simd::kWidth * kGroup);
        wide[p][v] = Load::template widen<0>(raw[p][v]);
      }
    }
    add_step(wide, x);
    if constexpr (kSteps == 2 && decltype(kind)::kIsWhole) {
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) wide[p][v] = Load::template widen<1>(raw[p][v]);
      }
      add_step(wide, x + kTokens);
    }
    line += kPanelRows * kGroup;
    x += kTokens * kSteps;
  };

  constexpr int64_t kAhead = kAheadBytes / static_cast<int64_t>(sizeof(Stored));
  // An incomplete last group is filled up with zeros, which a step of its own leaves out.
  const int64_t groups = (args.columns + (kSteps == kGroup ? 0 : kGroup - 1)) / kGroup;
  // What lies ahead of a panel's end is the next panel, which is being read already: from there on
  // the panels after these are asked for.
  int64_t turn = groups - kAhead / (kPanelRows * kGroup);
  if (turn < 0) turn = 0;
  for (int64_t i = 0; i < turn; ++i) add_group(kAhead, GroupKind<true>());
  for (int64_t i = turn; i < groups; ++i)
    add_group(kAhead + (kPanels - 1) * stride, GroupKind<true>());
  if (groups * kGroup < args.columns) add_group(0, GroupKind<false>());

#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const int64_t lanes = lanes_left(args.num_rows, p, v);
      const int64_t row = p * kPanelRows + v * Simd::kWidth;
      const bool biased = args.bias != nullptr;
      const F bias = biased ? load_rows(args.bias + row, lanes) : Simd::zero();
#pragma GCC unroll 24
      for (int t = 0; t < kTokens; ++t) {
        const F sum = biased ? Simd::add(acc[p][v][t], bias) : acc[p][v][t];
        store_rows(args.y + t * args.y_stride + row, sum, lanes);
      }
    }
  }
}

/// Calls run(the number of tokens as a type) for 1 <= num_tokens <= kMost.
template <int kMost, class Run>
inline void choose_tokens(int64_t num_tokens, const Run& run) {
  if constexpr (kMost > 1) {
    if (num_tokens < kMost) return choose_tokens<kMost - 1>(num_tokens, run);
  }
  run(Count<kMost>());
}

/// One tile of tokens over all panels.
template <class Load, int kTokens>
void run_tokens(const LinearPanels& args, const typename Load::Activation* x, float* y) {
  constexpr int kPanels = panels_for(kTokens);
  const int64_t stride = args.panel_elements;
  Tile<Load> tile;
  tile.panel_stride = stride;
  tile.x = x;
  tile.columns = args.w.columns;
  tile.y_stride = args.y_stride;
  const auto at = [&](int64_t panel) -> const Tile<Load>& {
    const int64_t row = panel * kPanelRows;
    tile.w = static_cast<const typename Load::Stored*>(args.w.data) + panel * stride;
    tile.y = y + row;
    tile.num_rows = args.w.rows - row;
    tile.bias = args.bias != nullptr ? args.bias + row : nullptr;
    return tile;
  };
  int64_t panel = args.panel_begin;
  for (; panel + kPanels <= args.panel_end; panel += kPanels) {
    run_tile<Load, kPanels, kTokens>(at(panel));
  }
  for (; panel < args.panel_end; ++panel) run_tile<Load, 1, kTokens>(at(panel));
}

/// `kMost` tokens to a tile at most.
template <class Load, int kMost>
void run_panels(const LinearPanels& args) {
  const TokenTiles tiles(args.num_tokens, kMost);
  constexpr int64_t kColumns = Load::kGroup / Load::kSteps;  // of a step
  const int64_t steps = (args.w.columns + kColumns - 1) / kColumns;
  for (int64_t i = 0; i < tiles.num_tiles; ++i) {
    const int64_t token = tiles.first(i);
    const auto* x = static_cast<const typename Load::Activation*>(args.x) + token * steps;
    choose_tokens<kMost>(tiles.first(i + 1) - token, [&](auto tokens) {
      run_tokens<Load, decltype(tokens)::kValue>(args, x, args.y + token * args.y_stride);
    });
  }
}

inline void run_linear(const LinearPanels& args) {
  if (args.w.dtype == DType::F32) return run_panels<LoadF32, kMostTokens>(args);
  if (args.w.dtype == DType::F16) return run_panels<LoadF16, kMostTokens>(args);
  return run_panels<LoadBF16, kMostBF16Tokens>(args);
}

inline int64_t token_tile(DType dtype) {
  return dtype == DType::BF16 ? kMostBF16Tokens : kMostTokens;
}

/// Panels that a full tile of at most kMost tokens reads side by side.
template <int kMost>
int64_t panels_at_once(int64_t num_tokens) {
  return panels_for(num_tokens < kMost ? static_cast<int>(num_tokens) : kMost);
}

}  // namespace
}  // namespace llmctl::kernels::cpu
