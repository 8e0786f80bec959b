#include "kernels/rotary.h"

#include "kernels/convert.h"

namespace llmctl::kernels::reference {

void rotary(float* x, const float* cos, const float* sin, int64_t num_tokens, int64_t num_heads,
            int64_t head_dim, int64_t rotary_dim, bool interleaved, int64_t x_stride) {
  const int64_t half = rotary_dim / 2;
  for (int64_t t = 0; t < num_tokens; ++t) {
    for (int64_t head = 0; head < num_heads; ++head) {
      float* row = x + t * x_stride + head * head_dim;
      for (int64_t i = 0; i < half; ++i) {
        float& first = interleaved ? row[2 * i] : row[i];
        float& second = interleaved ? row[2 * i + 1] : row[i + half];
        const double a = first;
        const double b = second;
        const double c = cos[t * half + i];
        const double s = sin[t * half + i];
        first = static_cast<float>(a * c - b * s);
        second = static_cast<float>(b * c + a * s);
      }
    }
  }
}

void rotary_bf16(float* x, const float* cos, const float* sin, int64_t num_tokens,
                 int64_t num_heads, int64_t head_dim, int64_t rotary_dim, bool interleaved,
                 int64_t x_stride) {
  const auto bf16 = [](float value) { return bfloat16_to_float(float_to_bfloat16(value)); };
  const int64_t half = rotary_dim / 2;
  for (int64_t t = 0; t < num_tokens; ++t) {
    for (int64_t head = 0; head < num_heads; ++head) {
      float* row = x + t * x_stride + head * head_dim;
      for (int64_t i = 0; i < half; ++i) {
        float& first = interleaved ? row[2 * i] : row[i];
        float& second = interleaved ? row[2 * i + 1] : row[i + half];
        const float a = first;
        const float b = second;
        const float c = cos[t * half + i];
        const float s = sin[t * half + i];
        first = bf16(bf16(a * c) - bf16(b * s));
        second = bf16(bf16(b * c) + bf16(a * s));
      }
    }
  }
}

}  // namespace llmctl::kernels::reference
