// Weight-only quantised matrices as the products read them: panels of 16 rows of integers with
// their scales. Formulas and layout: docs/quantisation.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "formats/core/dtype.h"
#include "formats/core/thread_pool.h"
#include "kernels/panels.h"
#include "kernels/quantization.h"

namespace llmctl::kernels {

/// Columns are filled up with zeros to a multiple of this.
constexpr int64_t kQuantizedColumns = 8;

/// Blocks of a panel. A block is the integers of 16 rows by group_size columns (per row: of all
/// columns, filled up), then 16 scales: F16 of groups, F32 of rows.
constexpr int64_t quantized_blocks(const Quantization& q, int64_t columns) {
  return q.group_size == 0 ? 1 : columns / q.group_size;
}
constexpr DType quantized_scale_dtype(const Quantization& q) {
  return q.group_size == 0 ? DType::F32 : DType::F16;
}
size_t quantized_block_bytes(const Quantization& q, int64_t columns);
/// Bytes of one panel: its blocks one behind the other.
size_t quantized_panel_bytes(const Quantization& q, int64_t columns);
/// Bytes of a whole matrix: an incomplete last panel is filled up with rows of zeros. Nothing when
/// a size is negative or the bytes do not fit.
std::optional<uint64_t> quantized_matrix_bytes(const Quantization& q, int64_t rows,
                                               int64_t columns);

/// Whether the matrix can be quantised so: groups must divide its rows.
bool can_quantize(const Quantization& q, int64_t columns);

/// What quantising did to the values, or why it was not done.
struct QuantizeResult {
  double error_squares = 0;   ///< sum of (w - scale q)^2
  double weight_squares = 0;  ///< sum of w^2
  float max_error = 0;        ///< largest |w - scale q|
  enum class Fault {
    kNone,
    kNotFinite,  ///< a NaN or an infinity
    kTooLarge,   ///< a group whose scale F16 does not hold
  };
  Fault fault = Fault::kNone;
  int64_t fault_row = 0, fault_column = 0;  ///< where; of a group, its first column
};

/// Quantises a row-major matrix (rows, columns) of F32, F16 or BF16 and packs it; may be a run of
/// whole panels of a larger matrix. scale = max |w| / bound, rounded to the scales' dtype;
/// q = w / scale, rounded half away from zero and clipped to the bound. A row or group of zeros has
/// the scale 1, and no scale of other weights is less than the least of its dtype. With `scales`
/// (rows, blocks) these are used as they are. The same bytes on every ISA. On one thread. Requires:
/// can_quantize. Stops at the first fault; `panels` is then of no use.
QuantizeResult quantize_panels(void* panels,  // rounded up to panels: quantized_matrix_bytes
                               const void* rows_data, DType dtype, int64_t rows, int64_t columns,
                               const Quantization& q, const float* scales = nullptr);

/// The integers (rows, columns) and scales (rows, blocks) of a matrix, row-major; either may be
/// null. May be a run of whole panels.
void unpack_quantized(int8_t* values, float* scales, const void* panels, int64_t rows,
                      int64_t columns, const Quantization& q);

/// scale * q, row-major, each rounded to F32. May be a run of whole panels.
void dequantize_panels(float* rows_data, const void* panels, int64_t rows, int64_t columns,
                       const Quantization& q);

/// y[t][n] = sum_k x[t][k] * w[n][k] + bias[n] for a quantised w; parameters as `linear`
/// (kernels/linear.h). Activations of a token become 16-bit integers by blocks of columns (a group,
/// or 128), each with a scale of its own: max |x| / 32767. A block's products are summed as
/// integers, exactly; blocks are then scaled and added in F32, in order. The result does not depend
/// on the other tokens and rows, nor on the ISA. It differs from exact activations by at most
/// sum_block max|x| / 65534 * sum_k |w|, and F32 rounding of a sum of blocks. An activation that is
/// NaN or infinite makes the token's results NaN. Bound: bytes of w for few tokens, integer
/// products for many.
void quantized_linear(float* y, const float* x, const PanelMatrix& w, const float* bias,
                      int64_t num_tokens, int64_t y_stride,
                      float* scratch,  // quantized_scratch_floats(num_tokens, w.columns)
                      ThreadPool& pool);
int64_t quantized_scratch_floats(int64_t num_tokens, int64_t columns);

namespace reference {
QuantizeResult quantize_panels(void* panels, const void* rows_data, DType dtype, int64_t rows,
                               int64_t columns, const Quantization& q);
/// Exact activations, F64 sums. `values` and `scales` as unpack_quantized gives them.
void quantized_linear(float* y, const float* x, const int8_t* values, const float* scales,
                      const Quantization& q, const float* bias, int64_t num_tokens, int64_t n,
                      int64_t k, int64_t y_stride);
}  // namespace reference

}  // namespace llmctl::kernels
