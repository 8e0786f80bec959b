// A matrix product whose result is the same bits on every machine: for weights that are written to
// files, not for the decoder (see linear.h).
#pragma once

#include <cstdint>

namespace llmctl::kernels {

/// out[i][j] = sum over t of left[i][t] * right[t][j], t ascending, summed in F64 and rounded to
/// F32 once. The product of two F32 values is exact in F64, so that fusing it with the sum changes
/// nothing and every instruction set gives the same bits; NaN is the one quiet NaN. Bound: flops.
void product(float* out,          // (rows, columns)
             const float* left,   // (rows, k)
             const float* right,  // (k, columns)
             int64_t rows, int64_t k, int64_t columns);

namespace reference {
void product(float* out, const float* left, const float* right, int64_t rows, int64_t k,
             int64_t columns);
}  // namespace reference

}  // namespace llmctl::kernels
