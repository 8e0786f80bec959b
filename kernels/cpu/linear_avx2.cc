#include "kernels/cpu/simd_avx2.h"

// The body is written over the Simd of the header above.
#include "kernels/cpu/linear_body.h"

namespace llmctl::kernels::cpu {

const LinearKernel kAvx2Linear = {PackedAs::kF32, token_tile, panels_at_once<kMostTokens>,
                                  run_linear};

}  // namespace llmctl::kernels::cpu
