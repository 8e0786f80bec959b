// Casts of contiguous runs between F32, F16 and BF16, 16 elements at a time.
// Bound: bytes. No std header beyond plain types: nothing here may be shared with other objects.
#include <immintrin.h>

#include "kernels/cpu/convert_runs.h"

namespace llmctl::kernels::cpu {
namespace {

inline __mmask16 tail_mask(int64_t n) { return static_cast<__mmask16>((1U << n) - 1U); }

struct F32 {
  static constexpr int64_t kBytes = 4;
  static __m512 load(const char* p) { return _mm512_loadu_ps(p); }
  static __m512 load(const char* p, __mmask16 m) { return _mm512_maskz_loadu_ps(m, p); }
  static uint64_t store(char* p, __m512 v, bool) {
    _mm512_storeu_ps(p, v);
    return 0;
  }
  static uint64_t store(char* p, __m512 v, bool, __mmask16 m) {
    _mm512_mask_storeu_ps(p, m, v);
    return 0;
  }
};

/// Lanes whose value is finite and at least `threshold` (bits of a positive float).
inline __mmask16 overflowing(__m512 v, int threshold) {
  const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7FFFFFFF));
  return _mm512_cmplt_epu32_mask(_mm512_sub_epi32(magnitude, _mm512_set1_epi32(threshold)),
                                 _mm512_set1_epi32(0x7F800000 - threshold));
}

/// The largest finite 16-bit value with the sign of each lane of `v`.
inline __m256i signed_largest(__m512 v, int largest) {
  const __m512i sign =
      _mm512_and_si512(_mm512_srli_epi32(_mm512_castps_si512(v), 16), _mm512_set1_epi32(0x8000));
  return _mm512_cvtepi32_epi16(_mm512_or_si512(sign, _mm512_set1_epi32(largest)));
}

struct F16 {
  static constexpr int64_t kBytes = 2;
  static __m512 load(const char* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static __m512 load(const char* p, __mmask16 m) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, p));
  }
  static __m256i narrow(__m512 v, bool clamp, uint64_t* overflowed) {
    __m256i h = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __mmask16 over = overflowing(v, 0x477FF000);  // 65520 and above
    if (__builtin_expect(over != 0, 0)) {
      *overflowed = static_cast<uint64_t>(__builtin_popcount(over));
      if (clamp) h = _mm256_mask_mov_epi16(h, over, signed_largest(v, 0x7BFF));
    }
    return h;
  }
  static uint64_t store(char* p, __m512 v, bool clamp) {
    uint64_t overflowed = 0;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v, clamp, &overflowed));
    return overflowed;
  }
  static uint64_t store(char* p, __m512 v, bool clamp, __mmask16 m) {
    uint64_t overflowed = 0;
    _mm256_mask_storeu_epi16(p, m, narrow(v, clamp, &overflowed));
    return overflowed;
  }
};

struct BF16 {
  static constexpr int64_t kBytes = 2;
  static __m512 widen(__m256i h) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
  }
  static __m512 load(const char* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static __m512 load(const char* p, __mmask16 m) { return widen(_mm256_maskz_loadu_epi16(m, p)); }
  // In integers: the hardware's own conversion flushes denormals.
  static __m256i narrow(__m512 v, bool clamp, uint64_t* overflowed) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x00400000));
    __m256i h = _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
    const __mmask16 over = overflowing(v, 0x7F7F8000);
    if (__builtin_expect(over != 0, 0)) {
      *overflowed = static_cast<uint64_t>(__builtin_popcount(over));
      if (clamp) h = _mm256_mask_mov_epi16(h, over, signed_largest(v, 0x7F7F));
    }
    return h;
  }
  static uint64_t store(char* p, __m512 v, bool clamp) {
    uint64_t overflowed = 0;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v, clamp, &overflowed));
    return overflowed;
  }
  static uint64_t store(char* p, __m512 v, bool clamp, __mmask16 m) {
    uint64_t overflowed = 0;
    _mm256_mask_storeu_epi16(p, m, narrow(v, clamp, &overflowed));
    return overflowed;
  }
};

template <class From, class To>
uint64_t run(void* dst, const void* src, int64_t count, bool clamp) {
  const char* in = static_cast<const char*>(src);
  char* out = static_cast<char*>(dst);
  uint64_t overflowed = 0;
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    const __m512 a = From::load(in);
    const __m512 b = From::load(in + 16 * From::kBytes);
    overflowed += To::store(out, a, clamp);
    overflowed += To::store(out + 16 * To::kBytes, b, clamp);
    in += 32 * From::kBytes;
    out += 32 * To::kBytes;
  }
  for (; i < count; i += 16) {
    const __mmask16 m = count - i >= 16 ? static_cast<__mmask16>(0xFFFF) : tail_mask(count - i);
    overflowed += To::store(out, From::load(in, m), clamp, m);
    in += 16 * From::kBytes;
    out += 16 * To::kBytes;
  }
  return overflowed;
}

}  // namespace

ConvertRun avx512_convert_run(DType src, DType dst) {
  if (src == DType::F32 && dst == DType::F16) return run<F32, F16>;
  if (src == DType::F32 && dst == DType::BF16) return run<F32, BF16>;
  if (src == DType::F16 && dst == DType::F32) return run<F16, F32>;
  if (src == DType::F16 && dst == DType::BF16) return run<F16, BF16>;
  if (src == DType::BF16 && dst == DType::F32) return run<BF16, F32>;
  if (src == DType::BF16 && dst == DType::F16) return run<BF16, F16>;
  return nullptr;
}

}  // namespace llmctl::kernels::cpu
