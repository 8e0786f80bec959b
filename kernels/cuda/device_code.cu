// The driver knows which of a program's kernels it can load; one stands for all, as all are built
// for the same architectures.
#include "kernels/cuda/device_code.h"

#include <cuda_runtime.h>

namespace llmctl::kernels::cuda {
namespace {

__global__ void any_kernel() {}

}  // namespace

bool has_device_code() {
  cudaFuncAttributes attributes{};
  if (cudaFuncGetAttributes(&attributes, any_kernel) == cudaSuccess) return true;
  cudaGetLastError();
  return false;
}

}  // namespace llmctl::kernels::cuda
