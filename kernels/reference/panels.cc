#include "kernels/panels.h"

#include <cstring>

namespace llmctl::kernels::reference {

void pack_panels(void* panels, const void* rows_data, DType dtype, int64_t rows, int64_t columns) {
  if (rows == 0 || columns == 0) return;  // there is nothing to point to
  const size_t width = dtype_bytes(dtype);
  auto* to = static_cast<unsigned char*>(panels);
  const auto* from = static_cast<const unsigned char*>(rows_data);
  std::memset(panels, 0, matrix_panel_bytes(dtype, rows, columns).value());
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      std::memcpy(to + panel_offset(dtype, columns, row, column),
                  from + static_cast<size_t>(row * columns + column) * width, width);
    }
  }
}

}  // namespace llmctl::kernels::reference
