#include "kernels/linear.h"

#include "kernels/convert.h"

namespace llmctl::kernels::reference {

void linear(float* y, const float* x, const void* w, DType w_dtype, const float* bias,
            int64_t num_tokens, int64_t n, int64_t k, int64_t y_stride) {
  const auto weight = [&](int64_t at) -> double {
    if (w_dtype == DType::F32) return static_cast<const float*>(w)[at];
    const uint16_t bits = static_cast<const uint16_t*>(w)[at];
    return w_dtype == DType::F16 ? half_to_float(bits) : bfloat16_to_float(bits);
  };
  for (int64_t t = 0; t < num_tokens; ++t) {
    for (int64_t row = 0; row < n; ++row) {
      double sum = bias != nullptr ? bias[row] : 0.0;
      for (int64_t i = 0; i < k; ++i) sum += double{x[t * k + i]} * weight(row * k + i);
      y[t * y_stride + row] = static_cast<float>(sum);
    }
  }
}

}  // namespace llmctl::kernels::reference
