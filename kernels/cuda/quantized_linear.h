// Products for 1 to 16 tokens with INT8 or INT4 weights that are unpacked in registers.
#pragma once

#include <cstdint>

#include "formats/core/dtype.h"
#include "kernels/cuda/launch_stream.h"
#include "kernels/ops.h"

namespace llmctl::kernels::cuda {

/// y[t][i] = act(sum_k x[t][k] * scale[i][k / group_size] * q[i][k] + bias[i]) + residual[t][i].
struct QuantizedLinearArgs {
  const void* x = nullptr;     ///< (num_tokens, k), dense; 16-byte aligned
  DType x_dtype = DType::F16;  ///< F16 or BF16
  /// Row-major, 16-byte aligned. 8 bits: (n, k) signed. 4 bits: (n, k / 2), q + 8 unsigned, the low
  /// nibble of a byte for the even k.
  const void* q = nullptr;
  int bits = 8;
  const float* scales = nullptr;  ///< (n, k / group_size)
  int64_t group_size = 0;      ///< 0: one scale per row; else a multiple of 512 / bits dividing k
  const void* bias = nullptr;  ///< (n) of x_dtype; null: none
  const float* residual = nullptr;       ///< (num_tokens, n); null: none; may be y
  int64_t num_tokens = 0, n = 0, k = 0;  ///< k a multiple of 128 / bits
  bool activated = false;
  ActivationOp activation = ActivationOp::kSilu;
};

/// Weights become exact 16-bit integers, products are summed in F32, and every group's sum is
/// scaled in F32: more exact than scaling weights in 16 bits. Bound: bytes of q. The result for one
/// token does not depend on the other tokens. Throws kInternal against the contract above.
void quantized_linear(void* y,        // (num_tokens, n)
                      DType y_dtype,  // F32, F16 or BF16
                      const QuantizedLinearArgs& args, const LaunchStream& stream);

}  // namespace llmctl::kernels::cuda
