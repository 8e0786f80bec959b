// The matrix product of activations with F32, F16 or BF16 weights that lie as panels.
#pragma once

#include <cstdint>

#include "formats/core/dtype.h"
#include "formats/core/thread_pool.h"
#include "kernels/panels.h"

namespace llmctl::kernels {

/// What activations enter a product as. Sums are F32 either way.
enum class Activations {
  kF32,
  /// Rounded to BF16, to nearest and even, as frameworks do that run a BF16 model in BF16; for BF16
  /// weights only. Twice as fast where arithmetic is the bound and has_bf16_products().
  kBF16,
};

/// y[t][n] = sum_k x[t][k] * w[n][k] + bias[n], n in [0, w.rows). Each output is one accumulator, k
/// ascending, then the bias: it does not depend on the other rows and tokens of the call. With F32
/// activations the bits are those of every machine with FMA; with BF16 the processor's own product
/// of pairs may round a sum otherwise, and takes denormals for zeros. Bound: bytes of w for few
/// tokens, flops for many.
void linear(float* y,        // (num_tokens, w.rows), rows `y_stride` elements apart
            const float* x,  // (num_tokens, w.columns)
            const PanelMatrix& w,
            const float* bias,  // (w.rows), or null
            int64_t num_tokens, int64_t y_stride, Activations activations,
            float* scratch,  // linear_scratch_floats(num_tokens, w.columns)
            ThreadPool& pool);

/// Room for the activations in the order in which the product reads them.
int64_t linear_scratch_floats(int64_t num_tokens, int64_t columns);

namespace reference {
/// The same with `w` row-major, (n, k), and sums in F64.
void linear(float* y, const float* x, const void* w, DType w_dtype, const float* bias,
            int64_t num_tokens, int64_t n, int64_t k, int64_t y_stride);
}  // namespace reference

}  // namespace llmctl::kernels
