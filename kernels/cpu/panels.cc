// Packing is a transpose of 16 rows of groups. Bound: bytes.
#include "kernels/panels.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <string>

#include "formats/core/checked.h"
#include "formats/core/error.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/transpose.h"

namespace llmctl::kernels {
namespace {

int64_t count_panels(int64_t rows) { return (rows + kPanelRows - 1) / kPanelRows; }

void check_dtype(DType dtype) {
  if (has_panels(dtype)) return;
  throw Error(ErrorCode::kInternal, "no panels of " + std::string(dtype_name(dtype)));
}

/// What both directions need to know of one panel.
struct PanelShape {
  int64_t group_bytes, whole_groups, row_bytes;
  size_t left_bytes;  ///< of the row's incomplete last group

  PanelShape(DType dtype, int64_t columns) {
    const int64_t group = panel_group(dtype);
    const auto width = static_cast<int64_t>(dtype_bytes(dtype));
    group_bytes = group * width;
    whole_groups = columns / group;
    row_bytes = columns * width;
    left_bytes = static_cast<size_t>(row_bytes - whole_groups * group_bytes);
  }
  int64_t line_bytes() const { return kPanelRows * group_bytes; }
};

void pack_panel(cpu::Transpose transpose, char* panel, const char* rows_data,
                const PanelShape& shape, int64_t rows, size_t bytes) {
  if (rows < kPanelRows) std::memset(panel, 0, bytes);
  transpose(panel, shape.line_bytes(), rows_data, shape.row_bytes, rows, shape.whole_groups, false);
  if (shape.left_bytes == 0) return;
  char* line = panel + shape.whole_groups * shape.line_bytes();
  std::memset(line, 0, static_cast<size_t>(shape.line_bytes()));
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(line + row * shape.group_bytes,
                rows_data + row * shape.row_bytes + shape.whole_groups * shape.group_bytes,
                shape.left_bytes);
  }
}

}  // namespace

bool has_panels(DType dtype) {
  return dtype == DType::F32 || dtype == DType::F16 || dtype == DType::BF16;
}

std::optional<uint64_t> matrix_panel_bytes(DType dtype, int64_t rows, int64_t columns) {
  if (rows < 0 || columns < 0) return std::nullopt;
  const int64_t group = panel_group(dtype);
  const int64_t panels = rows / kPanelRows + (rows % kPanelRows != 0 ? 1 : 0);
  const int64_t groups = columns / group + (columns % group != 0 ? 1 : 0);
  return checked_num_bytes(dtype, {panels, kPanelRows, groups, group});
}

PanelMatrix panel_rows(const PanelMatrix& matrix, int64_t first, int64_t count) {
  if (first < 0 || first % kPanelRows != 0 || count < 0 || count > matrix.rows - first) {
    throw Error(ErrorCode::kInternal, "rows that are no panels of the matrix");
  }
  PanelMatrix part = matrix;
  part.data =
      static_cast<const char*>(matrix.data) + panel_offset(matrix.dtype, matrix.columns, first, 0);
  part.rows = count;
  return part;
}

void cpu::pack_panels(Isa isa, void* panels, const void* rows_data, DType dtype, int64_t rows,
                      int64_t columns) {
  check_dtype(dtype);
  if (rows == 0 || columns == 0) return;  // there is nothing to point to
  const PanelShape shape(dtype, columns);
  const Transpose transpose = find_transpose(isa, shape.group_bytes);
  const size_t bytes = panel_bytes(dtype, columns);
  auto* to = static_cast<char*>(panels);
  const auto* from = static_cast<const char*>(rows_data);
  for (int64_t row = 0; row < rows; row += kPanelRows, to += bytes) {
    pack_panel(transpose, to, from + row * shape.row_bytes, shape, std::min(kPanelRows, rows - row),
               bytes);
  }
}

void cpu::pack_panels_in_place(Isa isa, void* data, DType dtype, int64_t rows, int64_t columns,
                               ThreadPool& pool) {
  check_dtype(dtype);
  if (rows == 0 || columns == 0) return;  // there is nothing to point to
  const PanelShape shape(dtype, columns);
  const Transpose transpose = find_transpose(isa, shape.group_bytes);
  const size_t bytes = panel_bytes(dtype, columns);
  const int64_t num_panels = count_panels(rows);
  auto* base = static_cast<char*>(data);
  const auto pack_one = [&](int64_t panel, char* scratch) {
    const int64_t count = std::min(kPanelRows, rows - panel * kPanelRows);
    std::memcpy(scratch, base + panel * kPanelRows * shape.row_bytes,
                static_cast<size_t>(count * shape.row_bytes));
    pack_panel(transpose, base + static_cast<size_t>(panel) * bytes, scratch, shape, count, bytes);
  };
  if (shape.left_bytes > 0) {
    // A panel takes more than its rows did: from the end, where the room is.
    const auto scratch = std::make_unique_for_overwrite<char[]>(bytes);
    for (int64_t panel = num_panels; panel-- > 0;) pack_one(panel, scratch.get());
    return;
  }
  const int64_t per_task = std::max<int64_t>(1, num_panels / (8 * pool.num_threads()));
  const auto body = [&](int64_t i) {
    const auto scratch = std::make_unique_for_overwrite<char[]>(bytes);
    const int64_t end = std::min(num_panels, (i + 1) * per_task);
    for (int64_t panel = i * per_task; panel < end; ++panel) pack_one(panel, scratch.get());
  };
  pool.parallel_for((num_panels + per_task - 1) / per_task, std::ref(body));
}

void cpu::unpack_panels(Isa isa, void* rows_data, const void* panels, DType dtype, int64_t rows,
                        int64_t columns) {
  check_dtype(dtype);
  if (rows == 0 || columns == 0) return;  // there is nothing to point to
  const PanelShape shape(dtype, columns);
  const Transpose transpose = find_transpose(isa, shape.group_bytes);
  const size_t bytes = panel_bytes(dtype, columns);
  auto* to = static_cast<char*>(rows_data);
  const auto* from = static_cast<const char*>(panels);
  for (int64_t row = 0; row < rows; row += kPanelRows, from += bytes) {
    const int64_t count = std::min(kPanelRows, rows - row);
    char* first = to + row * shape.row_bytes;
    transpose(first, shape.row_bytes, from, shape.line_bytes(), shape.whole_groups, count, false);
    const char* line = from + shape.whole_groups * shape.line_bytes();
    for (int64_t r = 0; r < count && shape.left_bytes > 0; ++r) {
      std::memcpy(first + r * shape.row_bytes + shape.whole_groups * shape.group_bytes,
                  line + r * shape.group_bytes, shape.left_bytes);
    }
  }
}

void pack_panels(void* panels, const void* rows_data, DType dtype, int64_t rows, int64_t columns) {
  cpu::pack_panels(active_isa(), panels, rows_data, dtype, rows, columns);
}

void pack_panels_in_place(void* data, DType dtype, int64_t rows, int64_t columns,
                          ThreadPool& pool) {
  cpu::pack_panels_in_place(active_isa(), data, dtype, rows, columns, pool);
}

void unpack_panels(void* rows_data, const void* panels, DType dtype, int64_t rows,
                   int64_t columns) {
  cpu::unpack_panels(active_isa(), rows_data, panels, dtype, rows, columns);
}

}  // namespace llmctl::kernels
