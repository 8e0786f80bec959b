#include "kernels/cpu/simd_avx2.h"

// The body is written over the Simd of the header above.
#include "kernels/cpu/attention_body.h"

namespace llmctl::kernels::cpu {

void avx2_attention_row(const AttentionRow& row) { attention_row(row); }

}  // namespace llmctl::kernels::cpu
