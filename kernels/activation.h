// Element-wise operations of the decoder: activations, gates and the residual sum.
#pragma once

#include <cstdint>

#include "formats/core/thread_pool.h"

namespace llmctl::kernels {

enum class ActivationOp { kRelu, kGelu, kGeluTanh, kSilu, kQuickGelu };
/// x = act(x), in place. Formulas: gelu is exact (erf), gelu_tanh the tanh form.
void activation(float* x, int64_t count, ActivationOp op, ThreadPool& pool);
/// y[t][i] = act(gate_up[t][i]) * gate_up[t][n + i].
void gated_activation(float* y,              // (num_tokens, n)
                      const float* gate_up,  // (num_tokens, 2 * n)
                      int64_t num_tokens, int64_t n, ActivationOp op, ThreadPool& pool);

/// x += y.
void add(float* x, const float* y, int64_t count, ThreadPool& pool);

namespace reference {
void activation(float* x, int64_t count, ActivationOp op);
void gated_activation(float* y, const float* gate_up, int64_t num_tokens, int64_t n,
                      ActivationOp op);
}  // namespace reference

}  // namespace llmctl::kernels
