#include "kernels/cpu/simd_avx512.h"

// The body is written over the Simd of the header above.
#include "kernels/cpu/attention_body.h"

namespace llmctl::kernels::cpu {

void avx512_attention_row(const AttentionRow& row) { attention_row(row); }

}  // namespace llmctl::kernels::cpu
