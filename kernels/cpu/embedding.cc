#include "kernels/embedding.h"

#include <algorithm>

#include "kernels/cpu/dispatch.h"

namespace llmctl::kernels {

void cpu::embedding(Isa isa, float* y, const void* table, DType dtype, const int32_t* ids,
                    int64_t first_row, int64_t num_rows, int64_t num_tokens, int64_t width) {
  const auto* bytes = static_cast<const unsigned char*>(table);
  const int64_t row_bytes = width * static_cast<int64_t>(dtype_bytes(dtype));
  for (int64_t t = 0; t < num_tokens; ++t, y += width) {
    const int64_t row = ids[t] - first_row;
    if (row < 0 || row >= num_rows) {
      std::fill_n(y, width, 0.0F);
    } else {
      convert(isa, y, DType::F32, bytes + row * row_bytes, dtype, width, Overflow::kInf);
    }
  }
}

void embedding(float* y, const void* table, DType dtype, const int32_t* ids, int64_t first_row,
               int64_t num_rows, int64_t num_tokens, int64_t width) {
  cpu::embedding(active_isa(), y, table, dtype, ids, first_row, num_rows, num_tokens, width);
}

}  // namespace llmctl::kernels
