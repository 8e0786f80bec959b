// Weighted sums of contiguous runs of 16- and 32-bit elements, 8 at a time (AVX-512).
// Bound: bytes. No std header beyond plain types: nothing here may be shared with other objects.
#include <immintrin.h>

#include "kernels/cpu/digest_runs.h"

namespace llmctl::kernels::cpu {
namespace {

using Vector = __m512i;
constexpr int64_t kLanes = 8;

/// Eight elements, one per 64-bit lane.
template <int kBytes>
Vector load_elements(const char* p) {
  if constexpr (kBytes == 2) {
    return _mm512_cvtepu16_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  } else {
    return _mm512_cvtepu32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
}

Vector load_weights(const uint32_t* p) {
  return _mm512_cvtepu32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

Vector load_weights(const uint64_t* p) { return _mm512_loadu_si512(p); }

/// The intrinsic adds signed numbers, whose overflow is undefined; these wrap around.
uint64_t sum_of(Vector v) {
  alignas(64) uint64_t lanes[8];
  _mm512_store_si512(lanes, v);
  uint64_t sum = 0;
  for (const uint64_t lane : lanes) sum += lane;
  return sum;
}

Vector zero() { return _mm512_setzero_si512(); }
Vector add(Vector a, Vector b) { return _mm512_add_epi64(a, b); }
Vector multiply_low_halves(Vector a, Vector b) { return _mm512_mul_epu32(a, b); }
Vector high_halves(Vector a) { return _mm512_srli_epi64(a, 32); }

#include "kernels/cpu/digest_runs_body.h"

}  // namespace

DigestRuns avx512_digest_runs(int64_t width) {
  if (width == 2) return {run<2>, wide_run<2>};
  if (width == 4) return {run<4>, wide_run<4>};
  return {};
}

}  // namespace llmctl::kernels::cpu
