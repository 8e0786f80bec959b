#include "kernels/cpu/quantized_ints_avx512.h"
#include "kernels/cpu/simd_avx512.h"

// The body is written over the Simd and Ints of the headers above.
#include "kernels/cpu/quantized_body.h"

namespace llmctl::kernels::cpu {

const QuantizedKernel kAvx512VnniQuantized = {"avx512 vnni", kTokenTile, panels_at_once,
                                              quantize_activations, run_quantized};

}  // namespace llmctl::kernels::cpu
