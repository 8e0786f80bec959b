#include "kernels/product.h"

#include <cmath>
#include <limits>

namespace llmctl::kernels::reference {

void product(float* out, const float* left, const float* right, int64_t rows, int64_t k,
             int64_t columns) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      double sum = 0;
      for (int64_t t = 0; t < k; ++t) sum += double{left[i * k + t]} * right[t * columns + j];
      const auto rounded = static_cast<float>(sum);
      out[i * columns + j] =
          std::isnan(rounded) ? std::numeric_limits<float>::quiet_NaN() : rounded;
    }
  }
}

}  // namespace llmctl::kernels::reference
