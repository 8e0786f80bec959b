// Casts of contiguous runs between F32, F16 and BF16, 8 elements at a time (AVX2, F16C).
// Bound: bytes. No std header beyond plain types: nothing here may be shared with other objects.
#include <immintrin.h>

#include "kernels/cpu/convert_runs.h"

namespace llmctl::kernels::cpu {
namespace {

struct F32 {
  static constexpr int64_t kBytes = 4;
  static __m256 load(const char* p) { return _mm256_loadu_ps(reinterpret_cast<const float*>(p)); }
  static uint64_t store(char* p, __m256 v, bool) {
    _mm256_storeu_ps(reinterpret_cast<float*>(p), v);
    return 0;
  }
};

inline __m128i pack_low_halves(__m256i wide) {
  const __m256i packed = _mm256_packus_epi32(wide, wide);
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}

/// All ones in lanes whose value is finite and at least `threshold` (bits of a positive float).
inline __m256i overflowing(__m256 v, int threshold) {
  const __m256i magnitude = _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7FFFFFFF));
  return _mm256_and_si256(_mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(threshold - 1)),
                          _mm256_cmpgt_epi32(_mm256_set1_epi32(0x7F800000), magnitude));
}

/// Stores `h`; lanes of `v` that overflow are counted and, with `clamp`, replaced.
inline uint64_t store_checked(char* p, __m256 v, __m128i h, bool clamp, int threshold,
                              int largest) {
  const __m256i over = overflowing(v, threshold);
  const int lanes = _mm256_movemask_ps(_mm256_castsi256_ps(over));
  if (__builtin_expect(lanes != 0, 0) && clamp) {
    const __m256i sign =
        _mm256_and_si256(_mm256_srli_epi32(_mm256_castps_si256(v), 16), _mm256_set1_epi32(0x8000));
    const __m128i limit = pack_low_halves(_mm256_or_si256(sign, _mm256_set1_epi32(largest)));
    const __m128i over16 = pack_low_halves(_mm256_and_si256(over, _mm256_set1_epi32(0xFFFF)));
    h = _mm_blendv_epi8(h, limit, over16);
  }
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), h);
  return static_cast<uint64_t>(__builtin_popcount(static_cast<unsigned>(lanes)));
}

struct F16 {
  static constexpr int64_t kBytes = 2;
  static __m256 load(const char* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static uint64_t store(char* p, __m256 v, bool clamp) {
    const __m128i h = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return store_checked(p, v, h, clamp, 0x477FF000, 0x7BFF);
  }
};

struct BF16 {
  static constexpr int64_t kBytes = 2;
  static __m256 load(const char* p) {
    const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
  }
  static uint64_t store(char* p, __m256 v, bool clamp) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i chosen = _mm256_blendv_epi8(rounded, quiet, nan);
    return store_checked(p, v, pack_low_halves(_mm256_srli_epi32(chosen, 16)), clamp, 0x7F7F8000,
                         0x7F7F);
  }
};

template <class From, class To>
uint64_t run(void* dst, const void* src, int64_t count, bool clamp) {
  const char* in = static_cast<const char*>(src);
  char* out = static_cast<char*>(dst);
  uint64_t overflowed = 0;
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    overflowed += To::store(out, From::load(in), clamp);
    in += 8 * From::kBytes;
    out += 8 * To::kBytes;
  }
  if (i < count) {
    // Padding with zeros: they never overflow.
    char padded_in[8 * From::kBytes] = {};
    char padded_out[8 * To::kBytes];
    const auto rest = static_cast<unsigned long>(count - i);
    __builtin_memcpy(padded_in, in, rest * From::kBytes);
    overflowed += To::store(padded_out, From::load(padded_in), clamp);
    __builtin_memcpy(out, padded_out, rest * To::kBytes);
  }
  return overflowed;
}

}  // namespace

ConvertRun avx2_convert_run(DType src, DType dst) {
  if (src == DType::F32 && dst == DType::F16) return run<F32, F16>;
  if (src == DType::F32 && dst == DType::BF16) return run<F32, BF16>;
  if (src == DType::F16 && dst == DType::F32) return run<F16, F32>;
  if (src == DType::F16 && dst == DType::BF16) return run<F16, BF16>;
  if (src == DType::BF16 && dst == DType::F32) return run<BF16, F32>;
  if (src == DType::BF16 && dst == DType::F16) return run<BF16, F16>;
  return nullptr;
}

}  // namespace llmctl::kernels::cpu
