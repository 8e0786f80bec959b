// The quantised product for one instruction set, written once over `Simd` and `Ints` (include
// simd_*.h and define Ints first).
//
// A lane is a row of the panel. Of a lane a pair of columns is multiplied at a time: two 16-bit
// integers by two 16-bit activations, summed to 32 bits, which one instruction does. A block's sum
// is exact, so the order within it does not matter; blocks are scaled and added in F32, in order,
// each step rounded by itself. Nothing of that depends on the instruction set or on what is
// computed side by side.
#pragma once

#include "kernels/cpu/linear_panels.h"
#include "kernels/cpu/quantized_panels.h"

namespace llmctl::kernels::cpu {
namespace {

using F = Simd::F;
using I = Ints::I;

/// Registers to the rows of a panel.
constexpr int kVectors = static_cast<int>(kPanelRows / Simd::kWidth);
constexpr int kTokenTile = Simd::kWidth == 16 ? 8 : 4;

/// Panels whose sums are in registers at once, with those of `tokens` tokens.
constexpr int panels_for(int tokens) {
  if (Simd::kWidth == 16) return tokens <= 4 ? 4 : tokens <= 6 ? 3 : 2;
  if (Simd::kWidth == 8) return tokens == 1 ? 4 : tokens == 2 ? 2 : 1;
  return 1;
}

/// Bytes ahead of the reading at which lines of a panel are asked for, into L2.
constexpr int64_t kAheadBytes = 4096;

inline uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

/// Activations below it become zeros: their scale's inverse would be infinite.
constexpr float kLeastActivation = 0x1p-100F;

void quantize_activations(const QuantizeTask& task) {
  const int64_t tokens = task.num_tokens;
  for (int64_t t = 0; t < tokens; ++t) {
    const float* x = task.x + t * task.columns;
    for (int64_t first = 0, b = 0; first < task.padded_columns; first += task.block_columns, ++b) {
      const int64_t end = first + task.block_columns < task.padded_columns
                              ? first + task.block_columns
                              : task.padded_columns;
      const int64_t there = end < task.columns ? end : task.columns;
      uint32_t most = 0;
      for (int64_t k = first; k < there; ++k) {
        const uint32_t magnitude = bits_of(x[k]) & 0x7FFF'FFFFU;
        most = magnitude > most ? magnitude : most;
      }
      float largest;
      __builtin_memcpy(&largest, &most, sizeof largest);
      const bool is_finite = most < 0x7F80'0000U;
      const bool counts = is_finite && largest >= kLeastActivation;
      const float inverse = counts ? 32767.0F / largest : 0.0F;
      // 1.5 * 2^23: a sum with it has the integer nearest to x in its low bits, halves to even.
      constexpr float kMagic = 12582912.0F;
      int16_t* values = task.to.values + first * tokens + 2 * t;
      int32_t sum = 0;
      for (int64_t k = first; k < end; k += 2, values += 2 * tokens) {
        for (int64_t i = 0; i < 2; ++i) {
          int16_t value = 0;
          if (counts && k + i < there) {
            value = static_cast<int16_t>(bits_of(x[k + i] * inverse + kMagic));
          }
          values[i] = value;
          sum += value;
        }
      }
      task.to.scales[b * tokens + t] =
          counts ? largest / 32767.0F : (is_finite ? 0.0F : __builtin_nanf(""));
      task.to.starts[b * tokens + t] = -8 * sum;
    }
  }
}

/// Some panels and the tokens of one tile.
struct QuantizedTile {
  const char* panels;
  int64_t panel_bytes;  ///< from one panel to the next
  QuantizedActivations x;
  int64_t padded_columns, block_columns;
  float* y;  ///< of the first row and token
  int64_t y_stride;
  int64_t num_rows;   ///< of the panels, that exist
  const float* bias;  ///< of the first row; null: none
};

inline int64_t lanes_left(int64_t num_rows, int panel, int vector) {
  return num_rows - panel * kPanelRows - vector * Simd::kWidth;
}

/// A number, as a type.
template <int kCount>
struct Count {
  static constexpr int kValue = kCount;
};

/// Calls run(the number of tokens as a type) for 1 <= num_tokens <= kMost.
template <int kMost, class Run>
inline void choose_tokens(int64_t num_tokens, const Run& run) {
  if constexpr (kMost > 1) {
    if (num_tokens < kMost) return choose_tokens<kMost - 1>(num_tokens, run);
  }
  run(Count<kMost>());
}

template <int kBits, bool kGrouped, int kPanels, int kTokens>
void run_tile(const QuantizedTile& args) {
  constexpr int64_t kLineColumns = 32 / kBits;  // of a line of the cache: 64 bytes, 16 rows
  constexpr int64_t kVectorBytes = 64 / kVectors;
  F sums[kPanels][kVectors][kTokens];
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) sums[p][v][t] = Simd::zero();
    }
  }
  const int64_t stride = args.panel_bytes;
  const char* line = args.panels;
  const char* const end = args.panels + stride;
  const int16_t* x = args.x.values;
  const float* scales = args.x.scales;
  const int32_t* starts = args.x.starts;
  I acc[kPanels][kVectors][kTokens];
  // Inlined by order: a function that is called has its sums in memory.
  const auto add_pair = [&](const auto& pair, const int16_t* at) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      const I activation = Ints::broadcast_pair(at + 2 * t);
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          acc[p][v][t] = Ints::dot(acc[p][v][t], pair[p][v], activation);
        }
      }
    }
  };
  for (int64_t first = 0; first < args.padded_columns; first += args.block_columns) {
    const int64_t left = args.padded_columns - first;
    const int64_t lines = (left < args.block_columns ? left : args.block_columns) / kLineColumns;
    // What lies ahead of a panel's end is the next panel, which is being read already: the panels
    // after these are asked for instead.
    const int64_t ahead = kAheadBytes + (end - line > kAheadBytes ? 0 : (kPanels - 1) * stride);
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 8
        for (int t = 0; t < kTokens; ++t) {
          // INT4 are stored with 8 added.
          acc[p][v][t] = kBits == 4 ? Ints::set1(starts[t]) : Ints::zero();
        }
      }
    }
    for (int64_t i = 0; i < lines; ++i) {
      typename Ints::Pair pair[kPanels][kVectors];
      if constexpr (kBits == 8) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 4
          for (int p = 0; p < kPanels; ++p) {
            const char* at = line + p * stride;
            if (half == 0) __builtin_prefetch(at + ahead, 0, 2);
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
              pair[p][v] = Ints::load_int8(at + half * 32 + v * kVectorBytes / 2);
            }
          }
          add_pair(pair, x + half * 2 * kTokens);
        }
      } else {
        typename Ints::Nibbles nibbles[kPanels][kVectors];
#pragma GCC unroll 4
        for (int p = 0; p < kPanels; ++p) {
          const char* at = line + p * stride;
          __builtin_prefetch(at + ahead, 0, 2);
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) {
            nibbles[p][v] = Ints::load_nibbles(at + v * kVectorBytes);
          }
        }
        const auto add_nibbles = [&](auto which) __attribute__((always_inline)) {
          constexpr int kPair = decltype(which)::kValue;
#pragma GCC unroll 4
          for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
              pair[p][v] = Ints::template pair_of<kPair>(nibbles[p][v]);
            }
          }
          add_pair(pair, x + kPair * 2 * kTokens);
        };
        add_nibbles(Count<0>());
        add_nibbles(Count<1>());
        add_nibbles(Count<2>());
        add_nibbles(Count<3>());
      }
      line += 64;
      x += kLineColumns * kTokens;
    }
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const F weight = kGrouped ? Simd::load_f16(reinterpret_cast<const uint16_t*>(
                                        line + p * stride + v * Simd::kWidth * 2))
                                  : Simd::zero();
#pragma GCC unroll 8
        for (int t = 0; t < kTokens; ++t) {
          F scale = Simd::set1(scales[t]);
          if (kGrouped) scale = Simd::mul(scale, weight);
          sums[p][v][t] = Simd::add(sums[p][v][t], Simd::mul(Ints::to_float(acc[p][v][t]), scale));
        }
      }
    }
    if (kGrouped) line += 2 * kPanelRows;
    scales += kTokens;
    starts += kTokens;
  }
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const int64_t lanes = lanes_left(args.num_rows, p, v);
      const int64_t row = p * kPanelRows + v * Simd::kWidth;
      const F weight =
          kGrouped
              ? Simd::zero()
              : Simd::load(reinterpret_cast<const float*>(line + p * stride) + v * Simd::kWidth);
      F bias = Simd::zero();
      if (args.bias != nullptr && lanes > 0) {
        bias = lanes >= Simd::kWidth ? Simd::load(args.bias + row)
                                     : Simd::load_n(args.bias + row, lanes);
      }
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        F sum = sums[p][v][t];
        if (!kGrouped) sum = Simd::mul(sum, weight);
        if (args.bias != nullptr) sum = Simd::add(sum, bias);
        float* to = args.y + t * args.y_stride + row;
        if (lanes >= Simd::kWidth) {
          Simd::store(to, sum);
        } else if (lanes > 0) {
          Simd::store_n(to, sum, lanes);
        }
      }
    }
  }
}

template <int kBits, bool kGrouped>
void run_panels(const QuantizedTask& task) {
  QuantizedTile tile;
  tile.panel_bytes = static_cast<int64_t>(task.panel_bytes);
  tile.padded_columns = task.padded_columns;
  tile.block_columns = task.block_columns;
  tile.y_stride = task.y_stride;
  const TokenTiles tiles(task.num_tokens, task.token_tile);
  const int64_t most_tokens = (task.num_tokens + tiles.num_tiles - 1) / tiles.num_tiles;
  const auto sweep = [&](int64_t panel, auto panels, auto tokens, int64_t first)
      __attribute__((always_inline)) {
    const int64_t row = panel * kPanelRows;
    tile.panels = static_cast<const char*>(task.w.data) + panel * tile.panel_bytes;
    tile.y = task.y + first * task.y_stride + row;
    tile.num_rows = task.w.rows - row;
    tile.bias = task.bias != nullptr ? task.bias + row : nullptr;
    tile.x = {task.x.values + first * task.padded_columns, task.x.scales + first * task.num_blocks,
              task.x.starts + first * task.num_blocks};
    run_tile<kBits, kGrouped, decltype(panels)::kValue, decltype(tokens)::kValue>(tile);
  };
  // The panels of a step stay in L2 while the tiles pass.
  choose_tokens<kTokenTile>(most_tokens, [&](auto most) {
    constexpr int kPanels = panels_for(decltype(most)::kValue);
    for (int64_t panel = task.panel_begin; panel < task.panel_end;) {
      const bool whole = panel + kPanels <= task.panel_end;
      for (int64_t i = 0; i < tiles.num_tiles; ++i) {
        choose_tokens<kTokenTile>(tiles.first(i + 1) - tiles.first(i), [&](auto tokens) {
          if (whole) {
            sweep(panel, Count<kPanels>(), tokens, tiles.first(i));
          } else {
            sweep(panel, Count<1>(), tokens, tiles.first(i));
          }
        });
      }
      panel += whole ? kPanels : 1;
    }
  });
}

void run_quantized(const QuantizedTask& task) {
  const bool grouped = task.w.quantization.group_size != 0;
  if (task.w.quantization.bits == 8) {
    return grouped ? run_panels<8, true>(task) : run_panels<8, false>(task);
  }
  return grouped ? run_panels<4, true>(task) : run_panels<4, false>(task);
}

int64_t panels_at_once(int64_t num_tokens) {
  return panels_for(static_cast<int>(num_tokens < kTokenTile ? num_tokens : kTokenTile));
}

}  // namespace
}  // namespace llmctl::kernels::cpu
