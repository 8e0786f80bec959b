// Attention of one query over its cache, written once over `Simd` (include simd_*.h first).
// Two passes: scores and their maximum, then weights, their sum and the weighted values, all over
// positions in ascending order, so that a result depends on the query and its cache alone.
#pragma once

#include "kernels/cpu/attention_rows.h"
#include "kernels/cpu/math_body.h"

namespace llmctl::kernels::cpu {
namespace {

constexpr int64_t kStep = Simd::kWidth;

inline float dot(const float* a, const float* b, int64_t count) {
  Simd::F acc = Simd::zero();
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    acc = Simd::fma(Simd::load(a + i), Simd::load(b + i), acc);
  }
  if (i < count) {
    acc = Simd::fma(Simd::load_n(a + i, count - i), Simd::load_n(b + i, count - i), acc);
  }
  return Simd::sum(acc);
}

/// Calls body(entries, first, count) for every stretch of [begin, end) that lies in one page.
template <class Body>
inline void for_each_stretch(const AttentionRow& row, const float* base, const Body& body) {
  for (int64_t p = row.begin; p < row.end;) {
    const int64_t in_page = p % row.page_size;
    int64_t count = row.page_size - in_page;
    if (count > row.end - p) count = row.end - p;
    body(base + row.block_table[p / row.page_size] * row.page_stride + in_page * row.head_dim, p,
         count);
    p += count;
  }
}

/// scores[i] = e^(scores[i] - largest); returns their sum.
inline float exponentiate(float* scores, int64_t count, float largest) {
  const Simd::F shift = Simd::set1(largest);
  Simd::F sums = Simd::zero();
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    const Simd::F e = exp(Simd::sub(Simd::load(scores + i), shift));
    Simd::store(scores + i, e);
    sums = Simd::add(sums, e);
  }
  float sum = Simd::sum(sums);
  if (i < count) {
    Simd::store_n(scores + i, exp(Simd::sub(Simd::load_n(scores + i, count - i), shift)),
                  count - i);
    for (; i < count; ++i) sum += scores[i];
  }
  return sum;
}

/// y[d .. d + kVectors * kStep) = sum over positions of weight * value, times `norm`.
template <int kVectors>
inline void weigh_values(const AttentionRow& row, int64_t d, float norm) {
  Simd::F acc[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) acc[v] = Simd::zero();
  for_each_stretch(row, row.values, [&](const float* values, int64_t first, int64_t count) {
    const float* weights = row.scores + (first - row.begin);
    for (int64_t i = 0; i < count; ++i) {
      const Simd::F weight = Simd::set1(weights[i]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        acc[v] = Simd::fma(weight, Simd::load(values + i * row.head_dim + d + v * kStep), acc[v]);
      }
    }
  });
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    Simd::store(row.y + d + v * kStep, Simd::mul(acc[v], Simd::set1(norm)));
  }
}

inline void weigh_tail(const AttentionRow& row, int64_t d, float norm) {
  const int64_t n = row.head_dim - d;
  Simd::F acc = Simd::zero();
  for_each_stretch(row, row.values, [&](const float* values, int64_t first, int64_t count) {
    const float* weights = row.scores + (first - row.begin);
    for (int64_t i = 0; i < count; ++i) {
      acc = Simd::fma(Simd::set1(weights[i]), Simd::load_n(values + i * row.head_dim + d, n), acc);
    }
  });
  Simd::store_n(row.y + d, Simd::mul(acc, Simd::set1(norm)), n);
}

void attention_row(const AttentionRow& row) {
  const int64_t last = row.end - 1;
  float largest = -__builtin_inff();
  for_each_stretch(row, row.keys, [&](const float* keys, int64_t first, int64_t count) {
    float* scores = row.scores + (first - row.begin);
    for (int64_t i = 0; i < count; ++i) {
      const float distance = static_cast<float>(first + i - last);
      const float score =
          dot(row.q, keys + i * row.head_dim, row.head_dim) * row.scale + row.slope * distance;
      scores[i] = score;
      largest = score > largest ? score : largest;
    }
  });
  const float norm = 1.0F / exponentiate(row.scores, row.end - row.begin, largest);
  int64_t d = 0;
  for (; d + 4 * kStep <= row.head_dim; d += 4 * kStep) weigh_values<4>(row, d, norm);
  for (; d + kStep <= row.head_dim; d += kStep) weigh_values<1>(row, d, norm);
  if (d < row.head_dim) weigh_tail(row, d, norm);
}

}  // namespace
}  // namespace llmctl::kernels::cpu
