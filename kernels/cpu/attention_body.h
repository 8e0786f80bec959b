// Attention of a few queries over a chunk of their cache, written once over `Simd` (include
// simd_*.h first). Scores and their maximum, then weights, their sum and the weighted values, all
// over positions in ascending order. Queries side by side share the reading of keys and values and
// nothing else, so that a result depends on the query and its cache alone.
#pragma once

#include "kernels/cpu/attention_block.h"
#include "kernels/cpu/math_body.h"

namespace llmctl::kernels::cpu {
namespace {

constexpr int64_t kStep = Simd::kWidth;
/// Queries whose sums are in registers at once: four keys to a query, or four vectors of a value.
constexpr int kRowTile = Simd::kWidth == 16 ? 4 : Simd::kWidth == 8 ? 2 : 1;

struct CacheF32 {
  using Stored = float;
  static Simd::F load(const float* p) { return Simd::load(p); }
  static Simd::F load_n(const float* p, int64_t n) { return Simd::load_n(p, n); }
};
struct CacheF16 {
  using Stored = uint16_t;
  static Simd::F load(const uint16_t* p) { return Simd::load_f16(p); }
  static Simd::F load_n(const uint16_t* p, int64_t n) { return Simd::load_f16_n(p, n); }
};
struct CacheBF16 {
  using Stored = uint16_t;
  static Simd::F load(const uint16_t* p) { return Simd::load_bf16(p); }
  static Simd::F load_n(const uint16_t* p, int64_t n) { return Simd::load_bf16_n(p, n); }
};

struct Range {
  int64_t begin, end;
};
inline Range meet(Range a, Range b) {
  return {a.begin > b.begin ? a.begin : b.begin, a.end < b.end ? a.end : b.end};
}

/// Calls body(entries, first, count) for every stretch of positions that lies in one page, and
/// asks for the same place of the page after it.
template <class Stored, class Body>
inline void for_each_stretch(const AttentionBlock& block, const void* base, Range range,
                             const Body& body) {
  for (int64_t p = range.begin; p < range.end;) {
    const int64_t page = p / block.page_size;
    const int64_t in_page = p % block.page_size;
    int64_t count = block.page_size - in_page;
    const auto* at = static_cast<const Stored*>(base) + block.block_table[page] * block.page_stride;
    if (count >= range.end - p) {
      count = range.end - p;
    } else {
      const auto* next = reinterpret_cast<const char*>(
          static_cast<const Stored*>(base) + block.block_table[page + 1] * block.page_stride);
      const int64_t bytes = block.page_size * block.head_dim * static_cast<int64_t>(sizeof(Stored));
      for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(next + i, 0, 2);
    }
    body(at + in_page * block.head_dim, p, count);
    p += count;
  }
}

/// dots[row * kChunk + key] = q of the row . keys[key] for kKeys (4 or 1) consecutive keys; each
/// dot product has one accumulator.
template <class Cache, int kRows, int kKeys>
inline void dot(float* dots, const AttentionBlock::Row* rows, const typename Cache::Stored* keys,
                int64_t head_dim) {
  Simd::F acc[kRows][kKeys];
#pragma GCC unroll 4
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int key = 0; key < kKeys; ++key) acc[row][key] = Simd::zero();
  }
  const auto add = [&](const Simd::F(&part)[kKeys], const auto& load_q) {
#pragma GCC unroll 4
    for (int row = 0; row < kRows; ++row) {
      const Simd::F q = load_q(rows[row].q);
#pragma GCC unroll 4
      for (int key = 0; key < kKeys; ++key) acc[row][key] = Simd::fma(q, part[key], acc[row][key]);
    }
  };
  Simd::F part[kKeys];
  int64_t d = 0;
  for (; d + kStep <= head_dim; d += kStep) {
#pragma GCC unroll 4
    for (int key = 0; key < kKeys; ++key) part[key] = Cache::load(keys + key * head_dim + d);
    add(part, [d](const float* q) { return Simd::load(q + d); });
  }
  if (d < head_dim) {
    const int64_t n = head_dim - d;
#pragma GCC unroll 4
    for (int key = 0; key < kKeys; ++key) part[key] = Cache::load_n(keys + key * head_dim + d, n);
    add(part, [d, n](const float* q) { return Simd::load_n(q + d, n); });
  }
#pragma GCC unroll 4
  for (int row = 0; row < kRows; ++row) {
    if constexpr (kKeys == 4) {
      Simd::sum4(dots + row * kChunk, acc[row][0], acc[row][1], acc[row][2], acc[row][3]);
    } else {
      dots[row * kChunk] = Simd::sum(acc[row][0]);
    }
  }
}

/// Dots of positions `range` for kRows rows; `scores` is that of the chunk's first position.
template <class Cache, int kRows>
void score(const AttentionBlock& block, const AttentionBlock::Row* rows, Range range,
           int64_t chunk_begin, float* scores) {
  using Stored = typename Cache::Stored;
  for_each_stretch<Stored>(
      block, block.keys, range, [&](const Stored* keys, int64_t first, int64_t count) {
        float* dots = scores + (first - chunk_begin);
        int64_t i = 0;
        for (; i + 4 <= count; i += 4) {
          dot<Cache, kRows, 4>(dots + i, rows, keys + i * block.head_dim, block.head_dim);
        }
        for (; i < count; ++i) {
          dot<Cache, kRows, 1>(dots + i, rows, keys + i * block.head_dim, block.head_dim);
        }
      });
}

/// scores[i] = scale * scores[i] + slope * (distance + i); returns the largest.
inline float scale_scores(float* scores, int64_t count, float scale_by, float slope_by,
                          int64_t distance) {
  float lanes[kStep];
  for (int64_t i = 0; i < kStep; ++i) lanes[i] = static_cast<float>(i);
  const Simd::F steps = Simd::load(lanes);
  const Simd::F scale = Simd::set1(scale_by);
  const Simd::F slope = Simd::set1(slope_by);
  Simd::F most = Simd::set1(-__builtin_inff());
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    const Simd::F far = Simd::add(Simd::set1(static_cast<float>(distance + i)), steps);
    const Simd::F value =
        Simd::add(Simd::mul(Simd::load(scores + i), scale), Simd::mul(slope, far));
    Simd::store(scores + i, value);
    most = Simd::max(value, most);
  }
  Simd::store(lanes, most);
  float largest = lanes[0];
  for (const float lane : lanes) largest = lane > largest ? lane : largest;
  for (; i < count; ++i) {
    const float value = scores[i] * scale_by + slope_by * static_cast<float>(distance + i);
    scores[i] = value;
    largest = value > largest ? value : largest;
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

/// partial[d .. d + kVectors * kStep) += sum over `range` of weight * value, for kRows rows.
template <class Cache, int kRows, int kVectors>
void weigh(const AttentionBlock& block, const AttentionBlock::Row* rows, int64_t d, Range range,
           int64_t chunk_begin, const float* scores) {
  using Stored = typename Cache::Stored;
  // The last vector may be cut short: what is loaded and stored of it, else 0.
  const int64_t left = block.head_dim - d - (kVectors - 1) * kStep;
  const bool cut = left < kStep;
  Simd::F acc[kRows][kVectors];
#pragma GCC unroll 4
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      acc[row][v] = Simd::load(rows[row].partial + kPartialHead + d + v * kStep);
    }
  }
  for_each_stretch<Stored>(
      block, block.values, range, [&](const Stored* values, int64_t first, int64_t count) {
        const float* weights = scores + (first - chunk_begin);
        for (int64_t i = 0; i < count; ++i) {
          const Stored* value = values + i * block.head_dim + d;
          Simd::F wide[kVectors];
#pragma GCC unroll 4
          for (int v = 0; v + 1 < kVectors; ++v) wide[v] = Cache::load(value + v * kStep);
          const Stored* last = value + (kVectors - 1) * kStep;
          wide[kVectors - 1] = cut ? Cache::load_n(last, left) : Cache::load(last);
#pragma GCC unroll 4
          for (int row = 0; row < kRows; ++row) {
            const Simd::F weight = Simd::set1(weights[row * kChunk + i]);
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
              acc[row][v] = Simd::fma(weight, wide[v], acc[row][v]);
            }
          }
        }
      });
#pragma GCC unroll 4
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      Simd::store(rows[row].partial + kPartialHead + d + v * kStep, acc[row][v]);
    }
  }
}

template <class Cache, int kRows>
void weigh_all(const AttentionBlock& block, const AttentionBlock::Row* rows, Range range,
               int64_t chunk_begin, const float* scores) {
  int64_t d = 0;
  for (; d + 4 * kStep <= block.head_dim; d += 4 * kStep) {
    weigh<Cache, kRows, 4>(block, rows, d, range, chunk_begin, scores);
  }
  for (; d < block.head_dim; d += kStep) {
    weigh<Cache, kRows, 1>(block, rows, d, range, chunk_begin, scores);
  }
}

/// kRows rows over the chunk. What all of them see is done side by side, before and after that one
/// by one.
template <class Cache, int kRows>
void run_rows(const AttentionBlock& block, const AttentionBlock::Row* rows, Range chunk,
              float* scores) {
  Range common = chunk;
  for (int row = 0; row < kRows; ++row) common = meet(common, {rows[row].begin, rows[row].end});
  // Nobody's: each row is then on its own.
  if (common.end < common.begin) common.end = common.begin;
  const bool shared = kRows > 1 && common.end > common.begin;
  const auto each_alone = [&](const auto& body) {
    for (int row = 0; row < kRows; ++row) {
      const Range seen = meet(chunk, {rows[row].begin, rows[row].end});
      if (seen.begin < seen.end) body(row, seen);
    }
  };
  if (shared) score<Cache, kRows>(block, rows, common, chunk.begin, scores);
  each_alone([&](int row, Range seen) {
    float* own = scores + row * kChunk;
    if (!shared) return score<Cache, 1>(block, rows + row, seen, chunk.begin, own);
    score<Cache, 1>(block, rows + row, {seen.begin, common.begin}, chunk.begin, own);
    score<Cache, 1>(block, rows + row, {common.end, seen.end}, chunk.begin, own);
  });
  each_alone([&](int row, Range seen) {
    float* own = scores + row * kChunk + (seen.begin - chunk.begin);
    const int64_t count = seen.end - seen.begin;
    const float largest =
        scale_scores(own, count, block.scale, rows[row].slope, seen.begin - (rows[row].end - 1));
    float* partial = rows[row].partial;
    partial[0] = largest;
    // Where every score is -infinity every weight is 0.
    partial[1] = exponentiate(own, count, largest == -__builtin_inff() ? 0.0F : largest);
    for (int64_t d = 0; d < block.head_dim; d += kStep) {
      Simd::store(partial + kPartialHead + d, Simd::zero());
    }
    if (!shared) {
      weigh_all<Cache, 1>(block, rows + row, seen, chunk.begin, scores + row * kChunk);
    } else {
      weigh_all<Cache, 1>(block, rows + row, {seen.begin, common.begin}, chunk.begin,
                          scores + row * kChunk);
    }
  });
  if (!shared) return;
  weigh_all<Cache, kRows>(block, rows, common, chunk.begin, scores);
  each_alone([&](int row, Range seen) {
    weigh_all<Cache, 1>(block, rows + row, {common.end, seen.end}, chunk.begin,
                        scores + row * kChunk);
  });
}

template <class Cache>
void run_cache(const AttentionBlock& block, int64_t chunk, float* scores) {
  const Range range{chunk * kChunk, (chunk + 1) * kChunk};
  int64_t row = 0;
  for (; row + kRowTile <= block.num_rows; row += kRowTile) {
    run_rows<Cache, kRowTile>(block, block.rows + row, range, scores + row * kChunk);
  }
  for (; row < block.num_rows; ++row) {
    run_rows<Cache, 1>(block, block.rows + row, range, scores + row * kChunk);
  }
}

void run_attention(const AttentionBlock& block, int64_t chunk, float* scores) {
  if (block.dtype == DType::F32) return run_cache<CacheF32>(block, chunk, scores);
  if (block.dtype == DType::F16) return run_cache<CacheF16>(block, chunk, scores);
  run_cache<CacheBF16>(block, chunk, scores);
}

inline float exp_one(float x) {
  float lanes[kStep];
  Simd::store(lanes, exp(Simd::set1(x)));
  return lanes[0];
}

void merge_partials(float* y, const float* partials, int64_t count, int64_t head_dim) {
  const int64_t stride = partial_floats(head_dim);
  float largest = partials[0];
  for (int64_t i = 1; i < count; ++i) {
    largest = partials[i * stride] > largest ? partials[i * stride] : largest;
  }
  float sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    sum += partials[i * stride + 1] * exp_one(partials[i * stride] - largest);
  }
  const Simd::F norm = Simd::set1(1.0F / sum);
  for (int64_t d = 0; d < head_dim; d += kStep) {
    Simd::F total = Simd::zero();
    for (int64_t i = 0; i < count; ++i) {
      const Simd::F part = Simd::load(partials + i * stride + kPartialHead + d);
      const Simd::F factor = Simd::set1(exp_one(partials[i * stride] - largest));
      total = Simd::fma(part, factor, total);
    }
    total = Simd::mul(total, norm);
    if (head_dim - d >= kStep) {
      Simd::store(y + d, total);
    } else {
      Simd::store_n(y + d, total, head_dim - d);
    }
  }
}

}  // namespace
}  // namespace llmctl::kernels::cpu
