// Eight floats in a register: the words that the shared kernel bodies are written in, AVX2 + FMA.
// Everything is in an unnamed namespace so that no object file shares code with another.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace llmctl::kernels::cpu {
namespace {

alignas(32) constexpr int32_t kLaneMasks[16] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                                0,  0,  0,  0,  0,  0,  0,  0};

struct Simd {
  static constexpr int64_t kWidth = 8;
  using F = __m256;
  /// Eight doubles, for sums that must not lose bits.
  struct D {
    __m256d low, high;
  };

  static __m256i first(int64_t n) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kLaneMasks + 8 - n));
  }
  static F zero() { return _mm256_setzero_ps(); }
  static F set1(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  /// The first n < kWidth elements, then zeros.
  static F load_n(const float* p, int64_t n) { return _mm256_maskload_ps(p, first(n)); }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static void store_n(float* p, F v, int64_t n) { _mm256_maskstore_ps(p, first(n), v); }

  static F load_f16(const uint16_t* p) { return _mm256_cvtph_ps(load_128(p)); }
  static F load_f16_n(const uint16_t* p, int64_t n) { return _mm256_cvtph_ps(load_128_n(p, n)); }
  static F load_bf16(const uint16_t* p) { return widen(load_128(p)); }
  static F load_bf16_n(const uint16_t* p, int64_t n) { return widen(load_128_n(p, n)); }

  /// Two BF16 to a lane, as panels have them.
  using Pairs = __m256i;
  static Pairs load_pairs(const uint16_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static F widen_low(Pairs v) { return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16)); }
  static F widen_high(Pairs v) {
    return _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(-65536)));
  }

  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  /// a * b + c
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  /// The second operand when either is NaN.
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F abs(F a) { return _mm256_andnot_ps(set1(-0.0F), a); }
  /// |a| with the sign of b; a must not be negative.
  static F copysign(F a, F b) { return _mm256_or_ps(a, _mm256_and_ps(set1(-0.0F), b)); }
  /// a < b ? x : y, lane by lane.
  static F select_less(F a, F b, F x, F y) {
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
  }
  static F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  /// a * 2^n for integral n within +-250: in two factors, so that each of them is a normal number.
  static F ldexp(F a, F n) {
    const __m256i whole = _mm256_cvtps_epi32(n);
    const __m256i half = _mm256_srai_epi32(whole, 1);
    return mul(mul(a, power(half)), power(_mm256_sub_epi32(whole, half)));
  }

  /// Sum of all lanes, always in the same tree.
  static float sum(F v) {
    const __m128 part = quarter(v);
    const __m128 pair = _mm_add_ps(part, _mm_movehl_ps(part, part));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
  }
  /// to[i] = sum(v[i]) for i < 4, in the same tree.
  static void sum4(float* to, F a, F b, F c, F d) {
    const __m128 pa = quarter(a);
    const __m128 pb = quarter(b);
    const __m128 pc = quarter(c);
    const __m128 pd = quarter(d);
    const __m128 ab = _mm_add_ps(_mm_movelh_ps(pa, pb), _mm_movehl_ps(pb, pa));
    const __m128 cd = _mm_add_ps(_mm_movelh_ps(pc, pd), _mm_movehl_ps(pd, pc));
    _mm_storeu_ps(to, _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xDD)));
  }

  static D zero_d() { return {_mm256_setzero_pd(), _mm256_setzero_pd()}; }
  static D set1_d(double x) { return {_mm256_set1_pd(x), _mm256_set1_pd(x)}; }
  static D load_d(const double* p) { return {_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4)}; }
  /// a * b + c
  static D fma_d(D a, D b, D c) {
    return {_mm256_fmadd_pd(a.low, b.low, c.low), _mm256_fmadd_pd(a.high, b.high, c.high)};
  }
  static F narrow_d(D a) {
    return _mm256_set_m128(_mm256_cvtpd_ps(a.high), _mm256_cvtpd_ps(a.low));
  }
  static D widen_d(F v) {
    return {_mm256_cvtps_pd(_mm256_castps256_ps128(v)),
            _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))};
  }
  static D add_d(D a, D b) { return {_mm256_add_pd(a.low, b.low), _mm256_add_pd(a.high, b.high)}; }
  static D sub_d(D a, double b) {
    return {_mm256_sub_pd(a.low, _mm256_set1_pd(b)), _mm256_sub_pd(a.high, _mm256_set1_pd(b))};
  }
  /// a + b * b
  static D add_square_d(D a, D b) {
    return {_mm256_fmadd_pd(b.low, b.low, a.low), _mm256_fmadd_pd(b.high, b.high, a.high)};
  }
  /// The first n lanes of `a`, then zeros.
  static D keep_d(D a, int64_t n) {
    const __m256i mask = first(n);
    const __m256i low = _mm256_cvtepi32_epi64(_mm256_castsi256_si128(mask));
    const __m256i high = _mm256_cvtepi32_epi64(_mm256_extracti128_si256(mask, 1));
    return {_mm256_and_pd(a.low, _mm256_castsi256_pd(low)),
            _mm256_and_pd(a.high, _mm256_castsi256_pd(high))};
  }
  static double sum_d(D a) {
    const __m256d both = _mm256_add_pd(a.low, a.high);
    const __m128d quarter =
        _mm_add_pd(_mm256_castpd256_pd128(both), _mm256_extractf128_pd(both, 1));
    return _mm_cvtsd_f64(_mm_add_sd(quarter, _mm_unpackhi_pd(quarter, quarter)));
  }

 private:
  static __m128 quarter(F v) {
    return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  }
  static __m128i load_128(const uint16_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  static __m128i load_128_n(const uint16_t* p, int64_t n) {
    alignas(16) uint16_t padded[8] = {};
    __builtin_memcpy(padded, p, static_cast<unsigned long>(n) * 2);
    return load_128(padded);
  }
  static F widen(__m128i h) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
  }
  static F power(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  }
};

}  // namespace
}  // namespace llmctl::kernels::cpu
