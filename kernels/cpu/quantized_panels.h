// Inside the kernels only: the product with a range of quantised panels, per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/isa.h"
#include "kernels/panels.h"

namespace llmctl::kernels::cpu {

/// Columns of activations that share a scale where the weights of a whole row do. Sums of so many
/// products, and of 256, fit 32 bits: 256 * 128 * 32767 < 2^31.
constexpr int64_t kActivationColumns = 128;

/// Activations of some tokens as 16-bit integers.
struct QuantizedActivations {
  /// Pair of columns by pair, in each token by token: (columns / 2, tokens, 2), zeros behind the
  /// last column.
  int16_t* values;
  float* scales;    ///< (blocks, tokens)
  int32_t* starts;  ///< (blocks, tokens): -8 times the sum of the block's values
};

/// Tokens [first, first + count) by columns of F32 made into integers.
struct QuantizeTask {
  QuantizedActivations to;
  const float* x;  ///< of the first token
  int64_t columns, padded_columns, block_columns, num_tokens;
};

/// The rows of panels [panel_begin, panel_end) and all tokens.
struct QuantizedTask {
  float* y;
  PanelMatrix w;
  const float* bias;
  int64_t num_tokens, y_stride, token_tile;
  QuantizedActivations x;  ///< tile by tile of tokens (TokenTiles), each as above
  int64_t padded_columns, block_columns, num_blocks;
  size_t panel_bytes;
  int64_t panel_begin, panel_end;
};

struct QuantizedKernel {
  std::string_view name;
  int64_t token_tile;                             ///< most tokens of a tile
  int64_t (*panels_at_once)(int64_t num_tokens);  ///< read side by side, with so many tokens
  void (*quantize)(const QuantizeTask& task);
  void (*run)(const QuantizedTask& task);
};

extern const QuantizedKernel kGenericQuantized;
extern const QuantizedKernel kAvx2Quantized;
extern const QuantizedKernel kAvx512Quantized;
extern const QuantizedKernel kAvx512VnniQuantized;

/// Every one that this machine can run, the best of an ISA last.
std::span<const QuantizedKernel* const> quantized_kernels();
const QuantizedKernel& quantized_kernel(Isa isa);

void quantized_linear(const QuantizedKernel& kernel, float* y, const float* x, const PanelMatrix& w,
                      const float* bias, int64_t num_tokens, int64_t y_stride, float* scratch,
                      ThreadPool& pool);

}  // namespace llmctl::kernels::cpu
