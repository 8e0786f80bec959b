// Sixteen floats in a register: the words that the shared kernel bodies are written in, AVX-512.
// Everything is in an unnamed namespace so that no object file shares code with another.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace llmctl::kernels::cpu {
namespace {

struct Simd {
  static constexpr int64_t kWidth = 16;
  using F = __m512;
  using Mask = __mmask16;
  /// Sixteen doubles, for sums that must not lose bits.
  struct D {
    __m512d low, high;
  };

  static Mask first(int64_t n) { return static_cast<Mask>((1U << n) - 1U); }
  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  /// The first n < kWidth elements, then zeros.
  static F load_n(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static void store_n(float* p, F v, int64_t n) { _mm512_mask_storeu_ps(p, first(n), v); }

  static F load_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F load_f16_n(const uint16_t* p, int64_t n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p));
  }
  static F load_bf16(const uint16_t* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F load_bf16_n(const uint16_t* p, int64_t n) {
    return widen(_mm256_maskz_loadu_epi16(first(n), p));
  }

  /// Two BF16 to a lane, as panels have them.
  using Pairs = __m512i;
  static Pairs load_pairs(const uint16_t* p) { return _mm512_loadu_si512(p); }
  static F widen_low(Pairs v) { return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16)); }
  static F widen_high(Pairs v) {
    return _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(-65536)));
  }

  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  /// a * b + c
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  /// The second operand when either is NaN.
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F abs(F a) { return _mm512_andnot_ps(set1(-0.0F), a); }
  /// |a| with the sign of b; a must not be negative.
  static F copysign(F a, F b) { return _mm512_or_ps(a, _mm512_and_ps(set1(-0.0F), b)); }
  /// a < b ? x : y, lane by lane.
  static F select_less(F a, F b, F x, F y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
  }
  static F round(F a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  /// a * 2^n for integral n.
  static F ldexp(F a, F n) { return _mm512_scalef_ps(a, n); }

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

  static D zero_d() { return {_mm512_setzero_pd(), _mm512_setzero_pd()}; }
  static D set1_d(double x) { return {_mm512_set1_pd(x), _mm512_set1_pd(x)}; }
  static D load_d(const double* p) { return {_mm512_loadu_pd(p), _mm512_loadu_pd(p + 8)}; }
  /// a * b + c
  static D fma_d(D a, D b, D c) {
    return {_mm512_fmadd_pd(a.low, b.low, c.low), _mm512_fmadd_pd(a.high, b.high, c.high)};
  }
  static F narrow_d(D a) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(a.low)),
                              _mm512_cvtpd_ps(a.high), 1);
  }
  static D widen_d(F v) {
    return {_mm512_cvtps_pd(_mm512_castps512_ps256(v)),
            _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1))};
  }
  static D add_d(D a, D b) { return {_mm512_add_pd(a.low, b.low), _mm512_add_pd(a.high, b.high)}; }
  static D sub_d(D a, double b) {
    return {_mm512_sub_pd(a.low, _mm512_set1_pd(b)), _mm512_sub_pd(a.high, _mm512_set1_pd(b))};
  }
  /// a + b * b
  static D add_square_d(D a, D b) {
    return {_mm512_fmadd_pd(b.low, b.low, a.low), _mm512_fmadd_pd(b.high, b.high, a.high)};
  }
  /// The first n lanes of `a`, then zeros.
  static D keep_d(D a, int64_t n) {
    return {_mm512_maskz_mov_pd(static_cast<__mmask8>(first(n)), a.low),
            _mm512_maskz_mov_pd(static_cast<__mmask8>(first(n) >> 8), a.high)};
  }
  static double sum_d(D a) {
    const __m512d both = _mm512_add_pd(a.low, a.high);
    const __m256d half =
        _mm256_add_pd(_mm512_castpd512_pd256(both), _mm512_extractf64x4_pd(both, 1));
    const __m128d quarter =
        _mm_add_pd(_mm256_castpd256_pd128(half), _mm256_extractf128_pd(half, 1));
    return _mm_cvtsd_f64(_mm_add_sd(quarter, _mm_unpackhi_pd(quarter, quarter)));
  }

 private:
  static __m128 quarter(F v) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  }
  static F widen(__m256i h) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
  }
};

}  // namespace
}  // namespace llmctl::kernels::cpu
