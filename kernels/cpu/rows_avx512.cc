#include "kernels/cpu/simd_avx512.h"

// The body is written over the Simd of the header above.
#include "kernels/cpu/rows_body.h"

namespace llmctl::kernels::cpu {

const RowKernels kAvx512Rows = {layer_norm_row, rms_norm_row, activation_run};

}  // namespace llmctl::kernels::cpu
