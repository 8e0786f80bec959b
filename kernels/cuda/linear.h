// Matrix-vector products for 1 to 16 tokens that stream FP16/BF16 weights at memory speed, with
// what a decoder puts around them: norm before, bias, activation, gating and residual after.
#pragma once

#include <cstdint>

#include "formats/core/dtype.h"
#include "kernels/cuda/launch_stream.h"
#include "kernels/ops.h"

namespace llmctl::kernels::cuda {

enum class NormKind : uint8_t { kNone, kRmsNorm, kLayerNorm };

/// y[t][i] = act(sum_k norm(x[t])[k] * w[i][k] + bias[i]) + residual[t][i], in F32 up to the one
/// rounding to the dtype of y.
struct LinearArgs {
  const void* x = nullptr;  ///< (num_tokens, k), dense; 16-byte aligned
  DType x_dtype = DType::F16;
  const void* w = nullptr;     ///< (n, k), or (2 n, k) when gated: gate rows, then up rows; 16-byte
                               ///< aligned
  DType w_dtype = DType::F16;  ///< F16 or BF16
  const void* bias = nullptr;  ///< (n) or, gated, (2 n); null: none
  DType bias_dtype = DType::F16;
  const float* residual = nullptr;       ///< (num_tokens, n); null: none; may be y
  int64_t num_tokens = 0, n = 0, k = 0;  ///< k a multiple of 8, at most kMaxLinearK

  NormKind norm = NormKind::kNone;    ///< one token only
  const void* norm_weight = nullptr;  ///< (k) of w_dtype; null: ones
  const void* norm_bias = nullptr;    ///< (k) of w_dtype, LayerNorm only; null: none
  float norm_eps = 0.0F;

  bool gated = false;      ///< y = act(gate) * up; one token only
  bool activated = false;  ///< y = act(...)
  ActivationOp activation = ActivationOp::kSilu;
};

constexpr int64_t kMaxLinearTokens = 16;
/// One token's activations stay in shared memory as F32.
constexpr int64_t kMaxLinearK = 57344;

/// One token: warps of FMA lanes over whole rows, x in F32 or w_dtype. More: tensor cores with the
/// weights as the 16-row operand, x in w_dtype. Bound: bytes of w. The result for one token
/// does not depend on the other tokens among calls of 2 .. 16 tokens; one token alone is summed in
/// another order. Throws kInternal against the contract above.
void linear(void* y,        // (num_tokens, n)
            DType y_dtype,  // F32, F16 or BF16
            const LinearArgs& args, const LaunchStream& stream);

/// The kernels by name, for measuring one against the other: as `linear`, with num_tokens == 1 for
/// the first; the second takes neither norm nor gating, and x in w_dtype.
void linear_fma(void* y, DType y_dtype, const LinearArgs& args, const LaunchStream& stream);
void linear_mma(void* y, DType y_dtype, const LinearArgs& args, const LaunchStream& stream);

}  // namespace llmctl::kernels::cuda
