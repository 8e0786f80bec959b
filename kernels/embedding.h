// Rows of a table, looked up by token id and widened to F32.
#pragma once

#include <cstdint>

#include "formats/core/thread_pool.h"
#include "kernels/panels.h"

namespace llmctl::kernels {

/// y[t] = table[ids[t] - first_row] widened to F32, or zeros when the table has no such row. The
/// table is the one that a tied head multiplies with; a row of it is a strided gather of one panel,
/// which is little beside reading the whole for the head.
void embedding(float* y,  // (num_tokens, table.columns)
               const PanelMatrix& table, const int32_t* ids, int64_t first_row, int64_t num_tokens,
               ThreadPool& pool);

}  // namespace llmctl::kernels
