#include "kernels/cpu/simd_avx2.h"

// The body is written over the Simd of the header above.
#include "kernels/cpu/linear_body.h"

namespace llmctl::kernels::cpu {

void avx2_linear_rows(const LinearRows& args) { linear_rows(args); }

}  // namespace llmctl::kernels::cpu
