#include "kernels/cpu/simd_avx512.h"

// The body is written over the Simd of the header above.
#include "kernels/cpu/attention_body.h"

namespace llmctl::kernels::cpu {

const AttentionKernel kAvx512Attention = {run_attention, merge_partials};

}  // namespace llmctl::kernels::cpu
