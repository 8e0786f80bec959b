// LLMCTL_CUDA_CHECK: turns a failed CUDA runtime call into an Error that names the call.
#pragma once

#include <cuda_runtime_api.h>

namespace llmctl::kernels::cuda {

/// Throws kEnvironment with the name and text of `status`, the expression and its place, unless
/// `status` is cudaSuccess. Clears the runtime's last error.
void check_status(cudaError_t status, const char* expression, const char* file, int line);

}  // namespace llmctl::kernels::cuda

#define LLMCTL_CUDA_CHECK(expr) \
  ::llmctl::kernels::cuda::check_status((expr), #expr, __FILE__, __LINE__)
