// RMSNorm and LayerNorm over rows, with the residual addition that precedes them in a decoder.
#pragma once

#include <cstdint>

#include "formats/core/dtype.h"
#include "kernels/cuda/launch_stream.h"

namespace llmctl::kernels::cuda {

/// Where a norm reads and writes; x, y and the parameters may each be F32, F16 or BF16.
struct NormArgs {
  const void* x = nullptr;  ///< (num_tokens, hidden_size)
  DType x_dtype = DType::F32;
  /// (num_tokens, hidden_size) or null. When given, x is added to it and the sum is normalised.
  float* residual = nullptr;
  const void* weight = nullptr;  ///< (hidden_size); null: ones
  const void* bias = nullptr;    ///< (hidden_size), layer_norm only; null: zeros
  DType weight_dtype = DType::F16;
  int64_t num_tokens = 0;
  int64_t hidden_size = 0;  ///< 1 .. kMaxNormHiddenSize
  float eps = 0.0F;
};

constexpr int64_t kMaxNormHiddenSize = 16384;

/// y = x / sqrt(mean(x^2) + eps) * weight, in F32 up to the one rounding to the dtype of y. Bound:
/// bytes. y may be x of the same dtype. Any alignment; 16-byte aligned rows are faster.
void rms_norm(void* y, DType y_dtype, const NormArgs& args, const LaunchStream& stream);

/// y = (x - mean) / sqrt(var + eps) * weight + bias; the variance from differences, in a second
/// pass. Otherwise as rms_norm.
void layer_norm(void* y, DType y_dtype, const NormArgs& args, const LaunchStream& stream);

}  // namespace llmctl::kernels::cuda
