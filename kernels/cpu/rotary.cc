// A few flops per element of one row: plain loops that any compiler vectorises are enough.
#include "kernels/rotary.h"

#include <cstring>

#include "kernels/cpu/threads.h"

namespace llmctl::kernels {
namespace {

struct KeepF32 {
  static float round(float x) { return x; }
};

struct RoundToBF16 {
  /// To nearest, ties to even, as float_to_bfloat16, in a form that vectorises.
  static float round(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000U;
    bits = x == x ? rounded : bits;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  }
};

template <class Round>
float turned(float a, float cos, float b, float sin) {
  return Round::round(Round::round(a * cos) + Round::round(b * sin));
}

template <class Round>
void turn_halves(float* row, const float* cos, const float* sin, int64_t half) {
  float* __restrict first = row;
  float* __restrict second = row + half;
  for (int64_t i = 0; i < half; ++i) {
    const float a = first[i];
    const float b = second[i];
    first[i] = turned<Round>(a, cos[i], -b, sin[i]);
    second[i] = turned<Round>(b, cos[i], a, sin[i]);
  }
}

template <class Round>
void turn_pairs(float* row, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = row[2 * i];
    const float b = row[2 * i + 1];
    row[2 * i] = turned<Round>(a, cos[i], -b, sin[i]);
    row[2 * i + 1] = turned<Round>(b, cos[i], a, sin[i]);
  }
}

template <class Round>
void turn_heads(float* x, const float* cos, const float* sin, int64_t num_tokens, int64_t num_heads,
                int64_t head_dim, int64_t rotary_dim, bool interleaved, int64_t x_stride,
                ThreadPool& pool) {
  const int64_t half = rotary_dim / 2;
  const auto body = [&](int64_t t) {
    for (int64_t head = 0; head < num_heads; ++head) {
      float* row = x + t * x_stride + head * head_dim;
      const auto turn = interleaved ? turn_pairs<Round> : turn_halves<Round>;
      turn(row, cos + t * half, sin + t * half, half);
    }
  };
  cpu::for_each_row(pool, num_tokens, num_heads * rotary_dim, body);
}

}  // namespace

void rotary(float* x, const float* cos, const float* sin, int64_t num_tokens, int64_t num_heads,
            int64_t head_dim, int64_t rotary_dim, bool interleaved, int64_t x_stride,
            ThreadPool& pool) {
  turn_heads<KeepF32>(x, cos, sin, num_tokens, num_heads, head_dim, rotary_dim, interleaved,
                      x_stride, pool);
}

void rotary_bf16(float* x, const float* cos, const float* sin, int64_t num_tokens,
                 int64_t num_heads, int64_t head_dim, int64_t rotary_dim, bool interleaved,
                 int64_t x_stride, ThreadPool& pool) {
  turn_heads<RoundToBF16>(x, cos, sin, num_tokens, num_heads, head_dim, rotary_dim, interleaved,
                          x_stride, pool);
}

}  // namespace llmctl::kernels
