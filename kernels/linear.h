// The matrix product of F32 activations with F32, F16 or BF16 weights.
#pragma once

#include <cstdint>

#include "formats/core/dtype.h"
#include "formats/core/thread_pool.h"

namespace llmctl::kernels {

/// y[t][n] = sum_k x[t][k] * w[n][k] + bias[n]; weights F32, F16 or BF16, row-major [n, k]; bias
/// may be null. Bound: bytes of w for few tokens, flops for many.
void linear(float* y,        // (num_tokens, n), rows `y_stride` elements apart
            const float* x,  // (num_tokens, k)
            const void* w, DType w_dtype, const float* bias, int64_t num_tokens, int64_t n,
            int64_t k, int64_t y_stride, ThreadPool& pool);

namespace reference {
void linear(float* y, const float* x, const void* w, DType w_dtype, const float* bias,
            int64_t num_tokens, int64_t n, int64_t k, int64_t y_stride);
}  // namespace reference

}  // namespace llmctl::kernels
