// The decoder's operations on the CPU, F32 activations. Each has a plain F64-accumulating twin in
// namespace `reference` with the same signature (less the pool), which is the oracle for all
// others. Every op's result for one token is bit-for-bit independent of the other tokens in the
// call, of the number of threads, and of how a sequence is cut into calls.
#pragma once

#include <cstdint>

#include "formats/core/dtype.h"
#include "formats/core/thread_pool.h"

namespace llmctl::kernels {

/// y[t][h] = (x - mean) / sqrt(var + eps) * weight[h] + bias[h]; weight and bias may be null.
void layer_norm(float* y,            // (num_tokens, hidden_size)
                const float* x,      // (num_tokens, hidden_size)
                const float* weight, const float* bias, int64_t num_tokens, int64_t hidden_size,
                float eps, ThreadPool& pool);

/// y[t][h] = x / sqrt(mean(x^2) + eps) * weight[h]; weight may be null.
void rms_norm(float* y, const float* x, const float* weight, int64_t num_tokens,
              int64_t hidden_size, float eps, ThreadPool& pool);

/// y[t][n] = sum_k x[t][k] * w[n][k] + bias[n]; weights F32, F16 or BF16, row-major [n, k]; bias
/// may be null. Bound: bytes of w for few tokens, flops for many.
void linear(float* y,           // (num_tokens, n), rows `y_stride` elements apart
            const float* x,     // (num_tokens, k)
            const void* w, DType w_dtype, const float* bias, int64_t num_tokens, int64_t n,
            int64_t k, int64_t y_stride, ThreadPool& pool);

/// y[t] = table[ids[t] - first_row] widened to F32, or zeros when the row is not in
/// [first_row, first_row + num_rows).
void embedding(float* y,  // (num_tokens, width)
               const void* table, DType dtype, const int32_t* ids, int64_t first_row,
               int64_t num_rows, int64_t num_tokens, int64_t width);

enum class ActivationOp { kRelu, kGelu, kGeluTanh, kSilu, kQuickGelu };
/// x = act(x), in place. Formulas: gelu is exact (erf), gelu_tanh the tanh form.
void activation(float* x, int64_t count, ActivationOp op, ThreadPool& pool);
/// y[t][i] = act(gate_up[t][i]) * gate_up[t][n + i].
void gated_activation(float* y,              // (num_tokens, n)
                      const float* gate_up,  // (num_tokens, 2 * n)
                      int64_t num_tokens, int64_t n, ActivationOp op, ThreadPool& pool);

/// x += y.
void add(float* x, const float* y, int64_t count, ThreadPool& pool);

/// Turns the first rotary_dim dims of every head in place. Pairs (i, i + rotary_dim/2), or
/// (2i, 2i + 1) when interleaved; pair i by the angle whose cosine and sine are cos[t][i], sin[t][i].
void rotary(float* x,          // num_tokens rows of num_heads * head_dim, `x_stride` apart
            const float* cos,  // (num_tokens, rotary_dim / 2)
            const float* sin, int64_t num_tokens, int64_t num_heads, int64_t head_dim,
            int64_t rotary_dim, bool interleaved, int64_t x_stride, ThreadPool& pool);

/// One layer's paged KV cache: pages of [K|V][num_kv_heads][page_size][head_dim], F32.
struct PagedKv {
  float* pool = nullptr;         ///< first page of this layer
  int64_t page_stride = 0;       ///< elements from one page to the next
  int64_t num_kv_heads = 0, head_dim = 0, page_size = 0;
};

/// Writes k and v of each token to its page. block_tables[t] is the block table of token t's
/// sequence: page of position p is block_tables[t][p / page_size].
void kv_append(const PagedKv& kv,
               const float* k,  // num_tokens rows of num_kv_heads * head_dim, `kv_stride` apart
               const float* v, int64_t kv_stride, const int32_t* const* block_tables,
               const int32_t* positions, int64_t num_tokens, ThreadPool& pool);

/// Causal attention of each token over its sequence's cache, positions 0 .. positions[t] (which
/// must have been appended). Query head h reads KV head h / (num_heads / num_kv_heads).
struct AttentionArgs {
  const float* q = nullptr;  ///< num_tokens rows of num_heads * head_dim, `q_stride` apart
  int64_t q_stride = 0;
  PagedKv kv;
  const int32_t* const* block_tables = nullptr;  ///< per token
  const int32_t* positions = nullptr;            ///< per token
  int64_t num_tokens = 0, num_heads = 0;
  float scale = 1.0F;
  const float* alibi_slopes = nullptr;  ///< per local query head; adds slope * (j - i); null: none
  int64_t window = 0;                   ///< keys seen, the query's own included; 0: all
};
void attention(float* y,  // (num_tokens, num_heads * head_dim)
               const AttentionArgs& args, ThreadPool& pool);

namespace reference {
void layer_norm(float* y, const float* x, const float* weight, const float* bias,
                int64_t num_tokens, int64_t hidden_size, float eps);
void rms_norm(float* y, const float* x, const float* weight, int64_t num_tokens,
              int64_t hidden_size, float eps);
void linear(float* y, const float* x, const void* w, DType w_dtype, const float* bias,
            int64_t num_tokens, int64_t n, int64_t k, int64_t y_stride);
void activation(float* x, int64_t count, ActivationOp op);
void gated_activation(float* y, const float* gate_up, int64_t num_tokens, int64_t n,
                      ActivationOp op);
void rotary(float* x, const float* cos, const float* sin, int64_t num_tokens, int64_t num_heads,
            int64_t head_dim, int64_t rotary_dim, bool interleaved, int64_t x_stride);
void attention(float* y, const AttentionArgs& args);
}  // namespace reference

}  // namespace llmctl::kernels
