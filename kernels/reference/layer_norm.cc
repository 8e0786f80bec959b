#include "kernels/layer_norm.h"

#include <cmath>

namespace llmctl::kernels::reference {

void layer_norm(float* y, const float* x, const float* weight, const float* bias,
                int64_t num_tokens, int64_t hidden_size, float eps) {
  for (int64_t t = 0; t < num_tokens; ++t, x += hidden_size, y += hidden_size) {
    double mean = 0;
    for (int64_t h = 0; h < hidden_size; ++h) mean += x[h];
    mean /= static_cast<double>(hidden_size);
    double variance = 0;
    for (int64_t h = 0; h < hidden_size; ++h) variance += (x[h] - mean) * (x[h] - mean);
    variance /= static_cast<double>(hidden_size);
    const double scale = 1.0 / std::sqrt(variance + double{eps});
    for (int64_t h = 0; h < hidden_size; ++h) {
      const double w = weight != nullptr ? weight[h] : 1.0;
      const double b = bias != nullptr ? bias[h] : 0.0;
      y[h] = static_cast<float>((x[h] - mean) * scale * w + b);
    }
  }
}

void rms_norm(float* y, const float* x, const float* weight, int64_t num_tokens,
              int64_t hidden_size, float eps) {
  for (int64_t t = 0; t < num_tokens; ++t, x += hidden_size, y += hidden_size) {
    double square = 0;
    for (int64_t h = 0; h < hidden_size; ++h) square += double{x[h]} * double{x[h]};
    const double scale = 1.0 / std::sqrt(square / static_cast<double>(hidden_size) + double{eps});
    for (int64_t h = 0; h < hidden_size; ++h) {
      const double w = weight != nullptr ? weight[h] : 1.0;
      y[h] = static_cast<float>(x[h] * scale * w);
    }
  }
}

}  // namespace llmctl::kernels::reference
