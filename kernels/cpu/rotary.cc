// A few flops per element of one row: plain loops that any compiler vectorises are enough.
#include "kernels/rotary.h"

#include <functional>

#include "kernels/cpu/threads.h"

namespace llmctl::kernels {
namespace {

void turn_halves(float* row, const float* cos, const float* sin, int64_t half) {
  float* __restrict first = row;
  float* __restrict second = row + half;
  for (int64_t i = 0; i < half; ++i) {
    const float a = first[i];
    const float b = second[i];
    first[i] = a * cos[i] - b * sin[i];
    second[i] = b * cos[i] + a * sin[i];
  }
}

void turn_pairs(float* row, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = row[2 * i];
    const float b = row[2 * i + 1];
    row[2 * i] = a * cos[i] - b * sin[i];
    row[2 * i + 1] = b * cos[i] + a * sin[i];
  }
}

}  // namespace

void rotary(float* x, const float* cos, const float* sin, int64_t num_tokens, int64_t num_heads,
            int64_t head_dim, int64_t rotary_dim, bool interleaved, int64_t x_stride,
            ThreadPool& pool) {
  const int64_t half = rotary_dim / 2;
  const auto body = [&](int64_t t) {
    for (int64_t head = 0; head < num_heads; ++head) {
      float* row = x + t * x_stride + head * head_dim;
      (interleaved ? turn_pairs : turn_halves)(row, cos + t * half, sin + t * half, half);
    }
  };
  cpu::for_each_row(pool, num_tokens, num_heads * rotary_dim, body);
}

}  // namespace llmctl::kernels
