#include "kernels/quantized.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/convert.h"

namespace llmctl::kernels::reference {
namespace {

/// Half away from zero.
int quantize(float weight, float scale, int bound) {
  return static_cast<int>(std::clamp(std::round(weight / scale), static_cast<float>(-bound),
                                     static_cast<float>(bound)));
}

float scale_of(float largest, const Quantization& q) {
  if (largest == 0) return 1;
  const float scale = largest / static_cast<float>(quantization_bound(q));
  if (q.group_size == 0) return std::max(scale, 0x1p-149F);
  return std::max(half_to_float(float_to_half(scale)), 0x1p-24F);
}

}  // namespace

QuantizeResult quantize_panels(void* panels, const void* rows_data, DType dtype, int64_t rows,
                               int64_t columns, const Quantization& q) {
  QuantizeResult result;
  const int64_t blocks = quantized_blocks(q, columns);
  const int64_t wide = (columns + kQuantizedColumns - 1) / kQuantizedColumns * kQuantizedColumns;
  const int64_t width = q.group_size == 0 ? wide : q.group_size;
  const int64_t bytes = static_cast<int64_t>(quantized_block_bytes(q, columns));
  auto* out = static_cast<unsigned char*>(panels);
  std::memset(out, 0, quantized_matrix_bytes(q, rows, columns).value());
  std::vector<float> w(static_cast<size_t>(rows * columns));
  convert(w.data(), DType::F32, rows_data, dtype, rows * columns, Overflow::kInf);
  for (int64_t row = 0; row < (rows + kPanelRows - 1) / kPanelRows * kPanelRows; ++row) {
    for (int64_t b = 0; b < blocks; ++b) {
      unsigned char* block = out + (row / kPanelRows * blocks + b) * bytes;
      float largest = 0;
      for (int64_t k = b * width; k < std::min(columns, (b + 1) * width) && row < rows; ++k) {
        largest = std::max(largest, std::fabs(w[static_cast<size_t>(row * columns + k)]));
      }
      const float scale = scale_of(largest, q);
      unsigned char* scales = block + width * 2 * q.bits;
      if (q.group_size == 0) {
        std::memcpy(scales + row % kPanelRows * 4, &scale, 4);
      } else {
        const uint16_t half = float_to_half(scale);
        std::memcpy(scales + row % kPanelRows * 2, &half, 2);
      }
      for (int64_t k = 0; k < width; ++k) {
        const int64_t column = b * width + k;
        int value = 0;
        if (row < rows && column < columns) {
          const float weight = w[static_cast<size_t>(row * columns + column)];
          value = quantize(weight, scale, quantization_bound(q));
          const float off = weight - scale * static_cast<float>(value);
          result.error_squares += static_cast<double>(off) * static_cast<double>(off);
          result.weight_squares += static_cast<double>(weight) * static_cast<double>(weight);
          result.max_error = std::max(result.max_error, std::fabs(off));
        }
        if (q.bits == 8) {
          block[k / 2 * 32 + row % kPanelRows * 2 + k % 2] = static_cast<unsigned char>(value);
        } else {
          // Of the eight columns of a 32-bit lane, 2j and 2j + 1 are at bit 4j of its two words.
          const int64_t j = k % 8 / 2;
          unsigned char& byte = block[k / 8 * 64 + row % kPanelRows * 4 + k % 2 * 2 + j / 2];
          byte = static_cast<unsigned char>(byte | (value + 8) << (j % 2 * 4));
        }
      }
    }
  }
  return result;
}

void quantized_linear(float* y, const float* x, const int8_t* values, const float* scales,
                      const Quantization& q, const float* bias, int64_t num_tokens, int64_t n,
                      int64_t k, int64_t y_stride) {
  const int64_t blocks = quantized_blocks(q, k);
  for (int64_t t = 0; t < num_tokens; ++t) {
    for (int64_t row = 0; row < n; ++row) {
      double sum = bias != nullptr ? bias[row] : 0.0;
      for (int64_t i = 0; i < k; ++i) {
        const double scale = scales[row * blocks + (q.group_size == 0 ? 0 : i / q.group_size)];
        sum += static_cast<double>(x[t * k + i]) * scale * values[row * k + i];
      }
      y[t * y_stride + row] = static_cast<float>(sum);
    }
  }
}

}  // namespace llmctl::kernels::reference
