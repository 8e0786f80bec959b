// The integer words that the quantised product is written in, sixteen lanes. Where the file is
// compiled for VNNI one instruction multiplies pairs and adds; else two.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace llmctl::kernels::cpu {
namespace {

struct Ints {
  using I = __m512i;
  /// Two 16-bit integers to a lane.
  using Pair = __m512i;
  /// Eight 4-bit ones, with 8 added.
  using Nibbles = __m512i;

  static I zero() { return _mm512_setzero_si512(); }
  static I set1(int32_t x) { return _mm512_set1_epi32(x); }
  static Pair load_int8(const char* p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Nibbles load_nibbles(const char* p) { return _mm512_loadu_si512(p); }
  template <int kPair>
  static Pair pair_of(Nibbles v) {
    const __m512i shifted = kPair == 0 ? v : _mm512_srli_epi16(v, 4 * kPair);
    return kPair == 3 ? shifted : _mm512_and_si512(shifted, _mm512_set1_epi16(15));
  }
  static I broadcast_pair(const int16_t* p) {
    int32_t both;
    std::memcpy(&both, p, sizeof both);
    return _mm512_set1_epi32(both);
  }
  static I dot(I sum, Pair a, I b) {
#ifdef __AVX512VNNI__
    return _mm512_dpwssd_epi32(sum, a, b);
#else
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
#endif
  }
  static __m512 to_float(I v) { return _mm512_cvtepi32_ps(v); }
};

}  // namespace
}  // namespace llmctl::kernels::cpu
