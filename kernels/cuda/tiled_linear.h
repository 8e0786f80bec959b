// Matrix products for any number of tokens on tensor cores, where cuBLASLt is absent.
#pragma once

#include "kernels/cuda/linear.h"

namespace llmctl::kernels::cuda {

/// As `linear` without norm and gating, x in w_dtype, for any number of tokens. Bound: flops. The
/// result for one token does not depend on the other tokens; it is summed in another order than
/// that of `linear`. Throws kInternal against the contract.
void tiled_linear(void* y,        // (num_tokens, n)
                  DType y_dtype,  // F32, F16 or BF16
                  const LinearArgs& args, const LaunchStream& stream);

}  // namespace llmctl::kernels::cuda
