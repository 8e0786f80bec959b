// Inside the kernels only: the product with a range of panels, per instruction set.
#pragma once

#include <cstdint>

#include "kernels/panels.h"

namespace llmctl::kernels::cpu {

namespace {  // so that no object file shares code with another

/// Tokens [first(i), first(i + 1)) make up tile i: as even as can be, because two tiles of 5 take
/// less time than one of 8 and one of 2.
struct TokenTiles {
  int64_t num_tokens, num_tiles;

  TokenTiles(int64_t tokens, int64_t most)
      : num_tokens(tokens), num_tiles((tokens + most - 1) / most) {}
  int64_t first(int64_t tile) const { return tile * num_tokens / num_tiles; }
};

}  // namespace

/// What a kernel takes the activations as.
enum class PackedAs {
  kF32,
  kBF16Pairs,  ///< of two neighbouring columns, the first in the low half; the last may lack one
};

/// The rows of panels [panel_begin, panel_end); the rest as in kernels/linear.h, except that the
/// activations are packed: tile by tile, in each column by column (or pair by pair) with the tile's
/// tokens side by side.
struct LinearPanels {
  float* y;
  const void* x;
  PanelMatrix w;
  int64_t panel_elements;  ///< from one panel to the next
  const float* bias;
  int64_t num_tokens, y_stride;
  int64_t panel_begin, panel_end;
};

/// Of every kernel.
constexpr int64_t kMostTileTokens = 24;

struct LinearKernel {
  PackedAs packed_as;
  int64_t (*token_tile)(DType dtype);  ///< most tokens of a tile
  /// Panels read side by side; a range of panels that is a multiple of it wastes nothing.
  int64_t (*panels_at_once)(int64_t num_tokens);
  void (*run)(const LinearPanels& args);
};

extern const LinearKernel kGenericLinear;
extern const LinearKernel kAvx2Linear;
extern const LinearKernel kAvx512Linear;
/// BF16 weights times BF16 activations only; needs has_bf16_products().
extern const LinearKernel kAvx512Bf16Linear;

}  // namespace llmctl::kernels::cpu
