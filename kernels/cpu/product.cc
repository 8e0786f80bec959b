// The F64-summed product, cut into panels of columns and groups of rows; and its generic version.
#include "kernels/product.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/simd_generic.h"

// The body is written over the Simd of the header above.
#include "kernels/cpu/product_body.h"

namespace llmctl::kernels {

void cpu::generic_product_tile(const ProductTile& args) { product_tile(args); }

void cpu::product(Isa isa, float* out, const float* left, const float* right, int64_t rows,
                  int64_t k, int64_t columns) {
  auto* tile = &generic_product_tile;
#if defined(__x86_64__)
  if (isa == Isa::kAvx2) tile = &avx2_product_tile;
  if (isa == Isa::kAvx512) tile = &avx512_product_tile;
#endif
  static_cast<void>(isa);
  // A panel is small enough to stay in L2 while all rows pass over it.
  std::vector<double> panel(static_cast<size_t>(k * kPanelColumns));
  std::vector<double> group(static_cast<size_t>(k * kProductRows));
  for (int64_t j = 0; j < columns; j += kPanelColumns) {
    const int64_t num_columns = std::min(kPanelColumns, columns - j);
    for (int64_t t = 0; t < k; ++t) {
      std::copy_n(right + t * columns + j, num_columns, panel.data() + t * kPanelColumns);
    }
    for (int64_t i = 0; i < rows; i += kProductRows) {
      const int64_t num_rows = std::min<int64_t>(kProductRows, rows - i);
      std::copy_n(left + i * k, num_rows * k, group.data());
      tile({out + i * columns + j, group.data(), panel.data(), num_rows, num_columns, k, columns});
    }
  }
  // Which NaN a sum yields depends on the order of an instruction's operands.
  for (int64_t i = 0; i < rows * columns; ++i) {
    if (std::isnan(out[i])) out[i] = std::numeric_limits<float>::quiet_NaN();
  }
}

void product(float* out, const float* left, const float* right, int64_t rows, int64_t k,
             int64_t columns) {
  cpu::product(active_isa(), out, left, right, rows, k, columns);
}

}  // namespace llmctl::kernels
