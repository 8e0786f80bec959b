// Inside the kernels only: a few rows of the F64-summed product, per instruction set.
#pragma once

#include <cstdint>

namespace llmctl::kernels::cpu {

/// Rows whose sums are in registers at once; columns that lie side by side in a panel, a multiple
/// of every vector width.
constexpr int kProductRows = 6;
constexpr int64_t kPanelColumns = 16;

/// out[r][j] = sum over t of left[r][t] * panel[t][j] for r < num_rows <= kProductRows.
struct ProductTile {
  float* out;           // (num_rows, num_columns), rows `out_stride` elements apart
  const double* left;   // (num_rows, k)
  const double* panel;  // (k, kPanelColumns)
  int64_t num_rows, num_columns, k, out_stride;
};

void generic_product_tile(const ProductTile& args);
void avx2_product_tile(const ProductTile& args);
void avx512_product_tile(const ProductTile& args);

}  // namespace llmctl::kernels::cpu
