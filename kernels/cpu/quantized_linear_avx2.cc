#include <cstring>

#include "kernels/cpu/simd_avx2.h"

namespace llmctl::kernels::cpu {
namespace {

/// The integer words of the body, eight lanes.
struct Ints {
  using I = __m256i;
  using Pair = __m256i;     ///< two 16-bit integers to a lane
  using Nibbles = __m256i;  ///< eight 4-bit ones, with 8 added

  static I zero() { return _mm256_setzero_si256(); }
  static I set1(int32_t x) { return _mm256_set1_epi32(x); }
  static Pair load_int8(const char* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Nibbles load_nibbles(const char* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  template <int kPair>
  static Pair pair_of(Nibbles v) {
    const __m256i shifted = kPair == 0 ? v : _mm256_srli_epi16(v, 4 * kPair);
    return kPair == 3 ? shifted : _mm256_and_si256(shifted, _mm256_set1_epi16(15));
  }
  static I broadcast_pair(const int16_t* p) {
    int32_t both;
    std::memcpy(&both, p, sizeof both);
    return _mm256_set1_epi32(both);
  }
  static I dot(I sum, Pair a, I b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
  static __m256 to_float(I v) { return _mm256_cvtepi32_ps(v); }
};

}  // namespace
}  // namespace llmctl::kernels::cpu

// The body is written over the Simd and Ints of the headers above.
#include "kernels/cpu/quantized_body.h"

namespace llmctl::kernels::cpu {

const QuantizedKernel kAvx2Quantized = {"avx2", kTokenTile, panels_at_once, quantize_activations,
                                        run_quantized};

}  // namespace llmctl::kernels::cpu
