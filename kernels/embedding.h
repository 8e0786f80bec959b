// Rows of a table, looked up by token id and widened to F32.
#pragma once

#include <cstdint>

#include "formats/core/dtype.h"

namespace llmctl::kernels {

/// y[t] = table[ids[t] - first_row] widened to F32, or zeros when the row is not in
/// [first_row, first_row + num_rows).
void embedding(float* y,  // (num_tokens, width)
               const void* table, DType dtype, const int32_t* ids, int64_t first_row,
               int64_t num_rows, int64_t num_tokens, int64_t width);

}  // namespace llmctl::kernels
