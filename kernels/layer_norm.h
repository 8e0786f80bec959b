// LayerNorm and RMSNorm over the rows of an F32 matrix.
#pragma once

#include <cstdint>

#include "formats/core/thread_pool.h"

namespace llmctl::kernels {

/// y[t][h] = (x - mean) / sqrt(var + eps) * weight[h] + bias[h]; weight and bias may be null.
void layer_norm(float* y,        // (num_tokens, hidden_size)
                const float* x,  // (num_tokens, hidden_size)
                const float* weight, const float* bias, int64_t num_tokens, int64_t hidden_size,
                float eps, ThreadPool& pool);

/// y[t][h] = x / sqrt(mean(x^2) + eps) * weight[h]; weight may be null.
void rms_norm(float* y, const float* x, const float* weight, int64_t num_tokens,
              int64_t hidden_size, float eps, ThreadPool& pool);

namespace reference {
void layer_norm(float* y, const float* x, const float* weight, const float* bias,
                int64_t num_tokens, int64_t hidden_size, float eps);
void rms_norm(float* y, const float* x, const float* weight, int64_t num_tokens,
              int64_t hidden_size, float eps);
}  // namespace reference

}  // namespace llmctl::kernels
