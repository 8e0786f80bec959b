// The matrix product for one instruction set, written once over `Simd` (include simd_*.h first).
//
// A lane is a row of the panel and every output is one accumulator, k ascending, then the bias.
// What is computed side by side only shares loads, so that a result depends on nothing else.
//
// Few tokens are bound by memory: several panels are read side by side, each prefetched, because
// what counts is how many lines are under way. Many tokens are bound by arithmetic: a block of the
// weights is widened into L1 once and all tokens pass over it.
#pragma once

#include "kernels/cpu/linear_panels.h"

namespace llmctl::kernels::cpu {
namespace {

using F = Simd::F;

/// Registers to the rows of a panel.
constexpr int kVectors = static_cast<int>(kPanelRows / Simd::kWidth);
/// Tokens of a tile of a block, and most tokens for which the weights are not widened into L1
/// first.
constexpr int kTokenTile = Simd::kWidth == 16 ? 8 : Simd::kWidth == 8 ? 6 : 4;
constexpr int kFewTokens = Simd::kWidth == 16 ? 16 : kTokenTile;
/// Panels that share the broadcast of an activation in a block.
constexpr int kBlockPanels = Simd::kWidth == 16 ? 3 : 1;

/// Panels whose sums are in registers at once, with those of `tokens` tokens.
constexpr int panels_for(int tokens) {
  if (Simd::kWidth == 16) return tokens <= 6 ? 4 : 24 / tokens;
  if (Simd::kWidth == 8) return tokens == 1 ? 4 : tokens <= 3 ? 6 / tokens : 1;
  return 1;
}

// How a vector of rows is read: kGroup columns of it at once, widened one after the other.
struct LoadF32 {
  using Stored = float;
  using Raw = F;
  static constexpr int kGroup = 1;
  static Raw load(const float* p) { return Simd::load(p); }
  template <int kColumn>
  static F widen(Raw raw) {
    return raw;
  }
};
struct LoadF16 {
  using Stored = uint16_t;
  using Raw = F;
  static constexpr int kGroup = 1;
  static Raw load(const uint16_t* p) { return Simd::load_f16(p); }
  template <int kColumn>
  static F widen(Raw raw) {
    return raw;
  }
};
struct LoadBF16 {
  using Stored = uint16_t;
  using Raw = Simd::Pairs;
  static constexpr int kGroup = 2;
  static Raw load(const uint16_t* p) { return Simd::load_pairs(p); }
  template <int kColumn>
  static F widen(Raw raw) {
    return kColumn == 0 ? Simd::widen_low(raw) : Simd::widen_high(raw);
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
  const typename Load::Stored* w;  ///< of the first panel, at the first column
  int64_t panel_stride;            ///< elements from one panel to the next
  const float* x;                  ///< (columns, tokens)
  int64_t columns;
  float* y;  ///< of the first row and token
  int64_t y_stride;
  int64_t num_rows;   ///< of the panels, that exist
  const float* bias;  ///< of the first row; null: none
  bool first, last;   ///< whether these are the first columns, the last
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

template <class Load, int kPanels, int kTokens, bool kPrefetch>
void run_tile(const Tile<Load>& args) {
  using Stored = typename Load::Stored;
  constexpr int kGroup = Load::kGroup;
  F acc[kPanels][kVectors][kTokens];
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) acc[p][v][t] = Simd::zero();
    }
  }
  if (!args.first) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const int64_t lanes = lanes_left(args.num_rows, p, v);
#pragma GCC unroll 16
        for (int t = 0; t < kTokens; ++t) {
          acc[p][v][t] =
              load_rows(args.y + t * args.y_stride + p * kPanelRows + v * Simd::kWidth, lanes);
        }
      }
    }
  }

  const int64_t stride = args.panel_stride;
  const Stored* line = args.w;
  const float* x = args.x;
  // Inlined by order: a function that is called has its sums in memory.
  // One column of all panels and tokens:
  const auto add_column = [&](const F(&wide)[kPanels][kVectors], const float* column)
      __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
      const F activation = Simd::set1(column[t]);
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          acc[p][v][t] = Simd::fma(wide[p][v], activation, acc[p][v][t]);
        }
      }
    }
  };
  const auto add_group = [&](int64_t ahead, auto kind) __attribute__((always_inline)) {
    typename Load::Raw raw[kPanels][kVectors];
    F wide[kPanels][kVectors];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      const Stored* at = line + p * stride;
      if (kPrefetch) __builtin_prefetch(at + ahead, 0, 2);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        raw[p][v] = Load::load(at + v * Simd::kWidth * kGroup);
        wide[p][v] = Load::template widen<0>(raw[p][v]);
      }
    }
    add_column(wide, x);
    if constexpr (kGroup == 2 && decltype(kind)::kIsWhole) {
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) wide[p][v] = Load::template widen<1>(raw[p][v]);
      }
      add_column(wide, x + kTokens);
    }
    line += kPanelRows * kGroup;
    x += kTokens * kGroup;
  };

  constexpr int64_t kAhead = kAheadBytes / static_cast<int64_t>(sizeof(Stored));
  const int64_t groups = args.columns / kGroup;
  // What lies ahead of a panel's end is the next panel, which is being read already: from there on
  // the panels after these are asked for.
  int64_t turn = kPrefetch ? groups - kAhead / (kPanelRows * kGroup) : groups;
  if (turn < 0) turn = 0;
  for (int64_t i = 0; i < turn; ++i) add_group(kAhead, GroupKind<true>());
  for (int64_t i = turn; i < groups; ++i)
    add_group(kAhead + (kPanels - 1) * stride, GroupKind<true>());
  if (args.columns % kGroup != 0) add_group(0, GroupKind<false>());

#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const int64_t lanes = lanes_left(args.num_rows, p, v);
      const int64_t row = p * kPanelRows + v * Simd::kWidth;
      const bool biased = args.last && args.bias != nullptr;
      const F bias = biased ? load_rows(args.bias + row, lanes) : Simd::zero();
#pragma GCC unroll 16
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

/// Up to kFewTokens tokens: the weights once, from memory.
template <class Load, int kTokens>
void run_few(const LinearPanels& args) {
  constexpr int kPanels = panels_for(kTokens);
  const int64_t stride = args.panel_elements;
  Tile<Load> tile;
  tile.panel_stride = stride;
  tile.x = args.x;
  tile.columns = args.w.columns;
  tile.y_stride = args.y_stride;
  tile.first = tile.last = true;
  const auto at = [&](int64_t panel) -> const Tile<Load>& {
    const int64_t row = panel * kPanelRows;
    tile.w = static_cast<const typename Load::Stored*>(args.w.data) + panel * stride;
    tile.y = args.y + row;
    tile.num_rows = args.w.rows - row;
    tile.bias = args.bias != nullptr ? args.bias + row : nullptr;
    return tile;
  };
  int64_t panel = args.panel_begin;
  for (; panel + kPanels <= args.panel_end; panel += kPanels) {
    run_tile<Load, kPanels, kTokens, true>(at(panel));
  }
  for (; panel < args.panel_end; ++panel) run_tile<Load, 1, kTokens, true>(at(panel));
}

/// `columns` columns of a panel as F32.
template <class Load>
void widen_block(float* to, const typename Load::Stored* from, int64_t columns) {
  constexpr int kGroup = Load::kGroup;
  for (int64_t i = 0; i < columns; i += kGroup) {
    const typename Load::Stored* line = from + i * kPanelRows;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const typename Load::Raw raw = Load::load(line + v * Simd::kWidth * kGroup);
      float* out = to + i * kPanelRows + v * Simd::kWidth;
      Simd::store(out, Load::template widen<0>(raw));
      if constexpr (kGroup == 2) Simd::store(out + kPanelRows, Load::template widen<1>(raw));
    }
  }
}

/// Activations of this many tokens, kBlockColumns of each, stay in L2 while panels pass.
constexpr int64_t kTokensInL2 = 512;

template <class Load>
void run_blocked(const LinearPanels& args) {
  alignas(64) float wide[kBlockPanels * kBlockColumns * kPanelRows];
  constexpr int64_t kWideStride = kBlockColumns * kPanelRows;
  const int64_t stride = args.panel_elements;
  const TokenTiles tiles(args.num_tokens, kTokenTile);
  constexpr int64_t kTilesInL2 = kTokensInL2 / kTokenTile;
  Tile<LoadF32> tile;
  tile.panel_stride = kWideStride;
  tile.y_stride = args.y_stride;
  for (int64_t begin = 0; begin < tiles.num_tiles; begin += kTilesInL2) {
    const int64_t end = begin + kTilesInL2 < tiles.num_tiles ? begin + kTilesInL2 : tiles.num_tiles;
    for (int64_t column = 0; column < args.w.columns; column += kBlockColumns) {
      const int64_t left = args.w.columns - column;
      tile.columns = left < kBlockColumns ? left : kBlockColumns;
      tile.first = column == 0;
      tile.last = left <= kBlockColumns;
      const float* x = args.x + column * args.num_tokens;
      for (int64_t panel = args.panel_begin; panel < args.panel_end; panel += kBlockPanels) {
        const int64_t count =
            args.panel_end - panel < kBlockPanels ? args.panel_end - panel : kBlockPanels;
        for (int64_t p = 0; p < count; ++p) {
          widen_block<Load>(wide + p * kWideStride,
                            static_cast<const typename Load::Stored*>(args.w.data) +
                                (panel + p) * stride + column * kPanelRows,
                            tile.columns);
        }
        // The next block is needed when all tokens have passed over this one: each tile asks for a
        // share of it, because so many requests at once would wait for one another.
        const int64_t line_elements = kPanelRows * Load::kGroup;
        const int64_t lines =
            (left - tile.columns < kBlockColumns ? left - tile.columns : kBlockColumns) /
            Load::kGroup;
        const int64_t share = (lines + end - begin - 1) / (end - begin);
        const auto ask_for_next = [&](int64_t part, int64_t first_panel, int64_t num_panels) {
          const int64_t stop = lines < (part + 1) * share ? lines : (part + 1) * share;
          for (int64_t p = first_panel; p < first_panel + num_panels; ++p) {
            const auto* next = static_cast<const typename Load::Stored*>(args.w.data) +
                               (panel + p) * stride + (column + kBlockColumns) * kPanelRows;
            for (int64_t i = part * share; i < stop; ++i) {
              __builtin_prefetch(next + i * line_elements, 0, 2);
            }
          }
        };
        const auto sweep = [&](int64_t first_panel, auto panels) {
          const int64_t row = (panel + first_panel) * kPanelRows;
          tile.w = wide + first_panel * kWideStride;
          tile.num_rows = args.w.rows - row;
          tile.bias = args.bias != nullptr ? args.bias + row : nullptr;
          for (int64_t i = begin; i < end; ++i) {
            const int64_t token = tiles.first(i);
            ask_for_next(i - begin, first_panel, decltype(panels)::kValue);
            tile.x = x + token * tile.columns;
            tile.y = args.y + token * args.y_stride + row;
            choose_tokens<kTokenTile>(tiles.first(i + 1) - token, [&](auto tokens) {
              run_tile<LoadF32, decltype(panels)::kValue, decltype(tokens)::kValue, false>(tile);
            });
          }
        };
        if (count == kBlockPanels) {
          sweep(0, Count<kBlockPanels>());
        } else {
          for (int64_t p = 0; p < count; ++p) sweep(p, Count<1>());
        }
      }
    }
  }
}

template <class Load>
void run_panels(const LinearPanels& args) {
  if (args.num_tokens > kFewTokens) return run_blocked<Load>(args);
  choose_tokens<kFewTokens>(args.num_tokens,
                            [&](auto tokens) { run_few<Load, decltype(tokens)::kValue>(args); });
}

void run_linear(const LinearPanels& args) {
  if (args.w.dtype == DType::F32) return run_panels<LoadF32>(args);
  if (args.w.dtype == DType::F16) return run_panels<LoadF16>(args);
  return run_panels<LoadBF16>(args);
}

int64_t panels_at_once(int64_t num_tokens) {
  return num_tokens <= kFewTokens ? panels_for(static_cast<int>(num_tokens)) : kBlockPanels;
}

}  // namespace
}  // namespace llmctl::kernels::cpu
