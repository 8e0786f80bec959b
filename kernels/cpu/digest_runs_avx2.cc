// Weighted sums of contiguous runs of 16- and 32-bit elements, 4 at a time (AVX2).
// Bound: bytes. No std header beyond plain types: nothing here may be shared with other objects.
#include <immintrin.h>

#include "kernels/cpu/digest_runs.h"

namespace llmctl::kernels::cpu {
namespace {

using Vector = __m256i;
constexpr int64_t kLanes = 4;

/// Four elements, one per 64-bit lane.
template <int kBytes>
Vector load_elements(const char* p) {
  if constexpr (kBytes == 2) {
    return _mm256_cvtepu16_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  } else {
    return _mm256_cvtepu32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
}

Vector load_weights(const uint32_t* p) {
  return _mm256_cvtepu32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

Vector load_weights(const uint64_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

uint64_t sum_of(Vector v) {
  alignas(32) uint64_t lanes[kLanes];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), v);
  return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

Vector zero() { return _mm256_setzero_si256(); }
Vector add(Vector a, Vector b) { return _mm256_add_epi64(a, b); }
Vector multiply_low_halves(Vector a, Vector b) { return _mm256_mul_epu32(a, b); }
Vector high_halves(Vector a) { return _mm256_srli_epi64(a, 32); }

#include "kernels/cpu/digest_runs_body.h"

}  // namespace

DigestRuns avx2_digest_runs(int64_t width) {
  if (width == 2) return {run<2>, wide_run<2>};
  if (width == 4) return {run<4>, wide_run<4>};
  return {};
}

}  // namespace llmctl::kernels::cpu
