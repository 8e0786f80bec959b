// The product of BF16 weights with BF16 activations by the processor's dot product of pairs, which
// does in one instruction what takes two FMA after a shift and a mask. It treats denormals as zeros
// and rounds a pair's sum in its own way.
#include "kernels/cpu/simd_avx512.h"

// The body is written over the Simd of the header above.
#include "kernels/cpu/linear_body.h"

namespace llmctl::kernels::cpu {
namespace {

struct DotBF16 {
  using Stored = uint16_t;
  using Activation = uint32_t;
  using Raw = __m512i;
  using Wide = __m512i;
  static constexpr int kGroup = 2, kSteps = 1;
  static Raw load(const uint16_t* p) { return Simd::load_pairs(p); }
  template <int kStep>
  static Wide widen(Raw raw) {
    return raw;
  }
  static Wide broadcast(uint32_t pair) { return _mm512_set1_epi32(static_cast<int>(pair)); }
  static F add_product(Wide weights, Wide activations, F sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(weights),
                            reinterpret_cast<__m512bh>(activations));
  }
};

// Two panels at least: one alone waits for the broadcasts.
constexpr int kMostDotTokens = 12;
int64_t dot_token_tile(DType) { return kMostDotTokens; }

}  // namespace

const LinearKernel kAvx512Bf16Linear = {PackedAs::kBF16Pairs, dot_token_tile,
                                        panels_at_once<kMostDotTokens>,
                                        run_panels<DotBF16, kMostDotTokens>};

}  // namespace llmctl::kernels::cpu
