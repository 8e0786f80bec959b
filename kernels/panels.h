// Weight matrices as the products read them: panels of 16 rows, interleaved.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "formats/core/dtype.h"
#include "formats/core/thread_pool.h"
#include "kernels/quantization.h"

namespace llmctl::kernels {

/// Rows of a panel. Each is one lane of a product's accumulators: nothing is summed across lanes.
constexpr int64_t kPanelRows = 16;

/// What panels begin at in memory: a line of the cache, which holds whole groups of all 16 rows.
constexpr size_t kPanelAlignment = 64;

/// Whether matrices of this dtype are kept as panels: F32, F16, BF16.
bool has_panels(DType dtype);

/// Neighbours of a row that lie side by side in a lane. Two BF16 widen from the two halves of a
/// 32-bit lane by a shift and a mask; F16 widen by an instruction that wants 16 of one column in a
/// row, so they stand alone.
constexpr int64_t panel_group(DType dtype) { return dtype == DType::BF16 ? 2 : 1; }

/// Bytes of one panel of `columns` columns: an incomplete last group is filled up with zeros.
inline size_t panel_bytes(DType dtype, int64_t columns) {
  const int64_t group = panel_group(dtype);
  const int64_t groups = columns / group + (columns % group != 0 ? 1 : 0);
  return static_cast<size_t>(groups * group * kPanelRows) * dtype_bytes(dtype);
}

/// Bytes of a whole matrix: an incomplete last panel is filled up with rows of zeros. Nothing when
/// a size is negative or the bytes do not fit.
std::optional<uint64_t> matrix_panel_bytes(DType dtype, int64_t rows, int64_t columns);

/// Byte of element (row, column):
///
///     panel(row / 16) · panel_bytes + (column / g) · 16 g w + (row % 16) · g w + (column % g) · w
///
/// with w the bytes of an element and g = panel_group.
inline size_t panel_offset(DType dtype, int64_t columns, int64_t row, int64_t column) {
  const int64_t group = panel_group(dtype);
  const int64_t place = (column / group * kPanelRows + row % kPanelRows) * group + column % group;
  return static_cast<size_t>(row / kPanelRows) * panel_bytes(dtype, columns) +
         static_cast<size_t>(place) * dtype_bytes(dtype);
}

/// A matrix (rows, columns) as panels; they belong to somebody else. A matrix of the rows from
/// 16 p on begins at panel p of this one.
struct PanelMatrix {
  const void* data = nullptr;  ///< matrix_panel_bytes, aligned to kPanelAlignment
  DType dtype = DType::F32;
  int64_t rows = 0, columns = 0;
  /// When it says so, `data` is as kernels/quantized.h has it and `dtype` means nothing.
  Quantization quantization = {};

  bool empty() const { return data == nullptr; }
};

/// Rows [first, first + count) of a matrix. Requires: first is a multiple of kPanelRows.
PanelMatrix panel_rows(const PanelMatrix& matrix, int64_t first, int64_t count);

/// Packs a row-major matrix; may be a run of whole panels (a multiple of 16 rows, or up to the last
/// one) of a larger matrix, so that one can be packed piece by piece. On one thread. `panels`
/// receives matrix_panel_bytes; any alignment; no overlap. Bound: bytes. Same bytes on every ISA.
void pack_panels(void* panels, const void* rows_data, DType dtype, int64_t rows, int64_t columns);
/// The same where the matrix stands: `data` has room for matrix_panel_bytes, of which the first
/// rows * columns elements are the row-major matrix. Takes one panel of scratch a thread.
void pack_panels_in_place(void* data, DType dtype, int64_t rows, int64_t columns, ThreadPool& pool);
/// Back to row-major, piece by piece as pack_panels.
void unpack_panels(void* rows_data, const void* panels, DType dtype, int64_t rows, int64_t columns);

namespace reference {
void pack_panels(void* panels, const void* rows_data, DType dtype, int64_t rows, int64_t columns);
}  // namespace reference

}  // namespace llmctl::kernels
