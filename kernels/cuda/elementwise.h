// Embedding, activation, gating and conversion: the operations that touch each element once.
#pragma once

#include <cstdint>

#include "formats/core/dtype.h"
#include "kernels/cuda/launch_stream.h"
#include "kernels/ops.h"

namespace llmctl::kernels::cuda {

struct EmbeddingArgs {
  const void* table = nullptr;  ///< (num_rows, width)
  DType dtype = DType::F16;
  const int32_t* ids = nullptr;         ///< (num_tokens), device memory
  int64_t first_row = 0, num_rows = 0;  ///< rows this rank holds: [first_row, first_row + num_rows)
  /// (positions, width) of the table's dtype and (num_tokens); null: no position embedding
  const void* position_table = nullptr;
  const int32_t* positions = nullptr;
  int64_t num_tokens = 0, width = 0;
  float scale = 1.0F;  ///< multiplies the token's row, before the position's is added
};

/// y[t] = table[ids[t] - first_row] * scale + position_table[positions[t]]; the first term is zero
/// for a row of another rank, both for a negative position (a padding row). Bound: bytes.
void embedding(void* y,  // (num_tokens, width)
               DType y_dtype, const EmbeddingArgs& args, const LaunchStream& stream);

/// y = act(x); y may be x. F32, F16 or BF16, computed in F32. Bound: bytes.
void activation(void* y, const void* x, DType dtype, int64_t count, ActivationOp op,
                const LaunchStream& stream);

/// y[t][i] = act(gate_up[t][i]) * gate_up[t][n + i]. Bound: bytes.
void gated_activation(void* y,              // (num_tokens, n)
                      const void* gate_up,  // (num_tokens, 2 * n)
                      DType dtype, int64_t num_tokens, int64_t n, ActivationOp op,
                      const LaunchStream& stream);

/// x += y for F32 x and y of any float dtype. Bound: bytes.
void add(float* x, const void* y, DType y_dtype, int64_t count, const LaunchStream& stream);

/// y[t][i] = act(y[t][i] + bias[i]), computed in F32; `bias` may be null, and there may be no
/// activation. Bound: bytes.
void add_bias(void* y,  // (num_tokens, n), F32, F16 or BF16
              DType dtype, const float* bias, int64_t num_tokens, int64_t n, bool activated,
              ActivationOp op, const LaunchStream& stream);

/// y = x, rounded to the dtype of y. Bound: bytes.
void convert(void* y, DType y_dtype, const void* x, DType x_dtype, int64_t count,
             const LaunchStream& stream);

}  // namespace llmctl::kernels::cuda
