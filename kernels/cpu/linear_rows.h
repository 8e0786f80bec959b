// Inside the kernels only: the matrix product of a range of output rows, per instruction set.
#pragma once

#include <cstdint>

#include "formats/core/dtype.h"

namespace llmctl::kernels::cpu {

/// y[t][row] for row in [row_begin, row_end); the rest as in kernels/linear.h.
struct LinearRows {
  float* y;
  const float* x;
  const void* w;
  DType w_dtype;
  const float* bias;
  int64_t num_tokens, n, k, y_stride;
  int64_t row_begin, row_end;
};

void generic_linear_rows(const LinearRows& args);
void avx2_linear_rows(const LinearRows& args);
void avx512_linear_rows(const LinearRows& args);

}  // namespace llmctl::kernels::cpu
