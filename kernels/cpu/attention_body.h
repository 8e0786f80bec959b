// Attention of one query over its cache, written once over `Simd` (include simd_*.h first).
// Two passes: scores and their maximum, then weights, their sum and the weighted values, all over
// positions in ascending order, so that a result depends on the query and its cache alone.
#pragma once

#include "kernels/cpu/attention_rows.h"
#include "kernels/cpu/math_body.h"

namespace llmctl::kernels::cpu {
namespace {

constexpr int64_t kStep = Simd::kWidth;

/// dots[i] = q . keys[i] for kKeys (4 or 1) consecutive keys; each dot product has one accumulator.
template <int kKeys>
inline void dot(float* dots, const float* q, const float* keys, int64_t head_dim) {
  Simd::F acc[kKeys];
#pragma GCC unroll 4
  for (int key = 0; key < kKeys; ++key) acc[key] = Simd::zero();
  int64_t d = 0;
  for (; d + kStep <= head_dim; d += kStep) {
    const Simd::F part = Simd::load(q + d);
#pragma GCC unroll 4
    for (int key = 0; key < kKeys; ++key) {
      acc[key] = Simd::fma(part, Simd::load(keys + key * head_dim + d), acc[key]);
    }
  }
  if (d < head_dim) {
    const int64_t n = head_dim - d;
    const Simd::F part = Simd::load_n(q + d, n);
#pragma GCC unroll 4
    for (int key = 0; key < kKeys; ++key) {
      acc[key] = Simd::fma(part, Simd::load_n(keys + key * head_dim + d, n), acc[key]);
    }
  }
  if constexpr (kKeys == 4) {
    Simd::sum4(dots, acc[0], acc[1], acc[2], acc[3]);
  } else {
    *dots = Simd::sum(acc[0]);
  }
}

/// Calls body(entries, next, first, count) for every stretch of [begin, end) that lies in one page;
/// `next` are the entries of the next page where those are worth a prefetch, else null.
template <class Body>
inline void for_each_stretch(const AttentionRow& row, const float* base, const Body& body) {
  for (int64_t p = row.begin; p < row.end;) {
    const int64_t page = p / row.page_size;
    const int64_t in_page = p % row.page_size;
    int64_t count = row.page_size - in_page;
    const float* next = nullptr;
    if (count >= row.end - p) {
      count = row.end - p;
    } else if (row.cold) {
      next = base + row.block_table[page + 1] * row.page_stride;
    }
    body(base + row.block_table[page] * row.page_stride + in_page * row.head_dim, next, p, count);
    p += count;
  }
}

inline void prefetch(const float* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) __builtin_prefetch(from + i, 0, 2);
}

/// scores[i] = scale * scores[i] + slope * (distance from the query); returns the largest.
inline float scale_scores(const AttentionRow& row, int64_t count) {
  float lanes[kStep];
  for (int64_t i = 0; i < kStep; ++i) lanes[i] = static_cast<float>(i);
  const Simd::F steps = Simd::load(lanes);
  const Simd::F scale = Simd::set1(row.scale);
  const Simd::F slope = Simd::set1(row.slope);
  Simd::F most = Simd::set1(-__builtin_inff());
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    const Simd::F distance = Simd::add(Simd::set1(static_cast<float>(i + 1 - count)), steps);
    const Simd::F score =
        Simd::add(Simd::mul(Simd::load(row.scores + i), scale), Simd::mul(slope, distance));
    Simd::store(row.scores + i, score);
    most = Simd::max(score, most);
  }
  Simd::store(lanes, most);
  float largest = lanes[0];
  for (const float lane : lanes) largest = lane > largest ? lane : largest;
  for (; i < count; ++i) {
    const float distance = static_cast<float>(i + 1 - count);
    const float score = row.scores[i] * row.scale + row.slope * distance;
    row.scores[i] = score;
    largest = score > largest ? score : largest;
  }
  return largest;
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
  for_each_stretch(
      row, row.values, [&](const float* values, const float* next, int64_t first, int64_t count) {
        const float* weights = row.scores + (first - row.begin);
        for (int64_t i = 0; i < count; ++i) {
          if (next != nullptr) prefetch(next + i * row.head_dim + d, kVectors * kStep);
          const Simd::F weight = Simd::set1(weights[i]);
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) {
            acc[v] =
                Simd::fma(weight, Simd::load(values + i * row.head_dim + d + v * kStep), acc[v]);
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
  for_each_stretch(row, row.values,
                   [&](const float* values, const float* /*next*/, int64_t first, int64_t count) {
                     const float* weights = row.scores + (first - row.begin);
                     for (int64_t i = 0; i < count; ++i) {
                       acc = Simd::fma(Simd::set1(weights[i]),
                                       Simd::load_n(values + i * row.head_dim + d, n), acc);
                     }
                   });
  Simd::store_n(row.y + d, Simd::mul(acc, Simd::set1(norm)), n);
}

void attention_row(const AttentionRow& row) {
  for_each_stretch(row, row.keys,
                   [&](const float* keys, const float* next, int64_t first, int64_t count) {
                     float* dots = row.scores + (first - row.begin);
                     int64_t i = 0;
                     for (; i + 4 <= count; i += 4) {
                       if (next != nullptr) prefetch(next + i * row.head_dim, 4 * row.head_dim);
                       dot<4>(dots + i, row.q, keys + i * row.head_dim, row.head_dim);
                     }
                     for (; i < count; ++i)
                       dot<1>(dots + i, row.q, keys + i * row.head_dim, row.head_dim);
                   });
  const int64_t count = row.end - row.begin;
  const float largest = scale_scores(row, count);
  const float norm = 1.0F / exponentiate(row.scores, count, largest);
  int64_t d = 0;
  for (; d + 8 * kStep <= row.head_dim; d += 8 * kStep) weigh_values<8>(row, d, norm);
  for (; d + 4 * kStep <= row.head_dim; d += 4 * kStep) weigh_values<4>(row, d, norm);
  for (; d + kStep <= row.head_dim; d += kStep) weigh_values<1>(row, d, norm);
  if (d < row.head_dim) weigh_tail(row, d, norm);
}

}  // namespace
}  // namespace llmctl::kernels::cpu
