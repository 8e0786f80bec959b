// Rotary position embedding.
#pragma once

#include <cstdint>

#include "formats/core/thread_pool.h"

namespace llmctl::kernels {

/// Turns the first rotary_dim dims of every head in place. Pairs (i, i + rotary_dim/2), or
/// (2i, 2i + 1) when interleaved; pair i by the angle whose cosine and sine are cos[t][i],
/// sin[t][i].
void rotary(float* x,          // num_tokens rows of num_heads * head_dim, `x_stride` apart
            const float* cos,  // (num_tokens, rotary_dim / 2)
            const float* sin, int64_t num_tokens, int64_t num_heads, int64_t head_dim,
            int64_t rotary_dim, bool interleaved, int64_t x_stride, ThreadPool& pool);

/// As rotary, with each product and each sum rounded to BF16 (to nearest, ties to even): what a
/// model in BF16 computes that keeps no wider intermediate.
void rotary_bf16(float* x, const float* cos, const float* sin, int64_t num_tokens,
                 int64_t num_heads, int64_t head_dim, int64_t rotary_dim, bool interleaved,
                 int64_t x_stride, ThreadPool& pool);

namespace reference {
void rotary(float* x, const float* cos, const float* sin, int64_t num_tokens, int64_t num_heads,
            int64_t head_dim, int64_t rotary_dim, bool interleaved, int64_t x_stride);
void rotary_bf16(float* x, const float* cos, const float* sin, int64_t num_tokens,
                 int64_t num_heads, int64_t head_dim, int64_t rotary_dim, bool interleaved,
                 int64_t x_stride);
}  // namespace reference

}  // namespace llmctl::kernels
