#include "kernels/cuda/launch_stream.h"

#include "formats/core/error.h"
#include "kernels/cuda/check.h"

namespace llmctl::kernels::cuda {

LaunchStream make_launch_stream(cudaStream_t stream) {
  if (stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread) {
    throw Error(ErrorCode::kInternal, "kernels must not be launched on the default stream", "CUDA");
  }
  int device = 0;
  LaunchStream result{.handle = stream};
  LLMCTL_CUDA_CHECK(cudaGetDevice(&device));
  LLMCTL_CUDA_CHECK(
      cudaDeviceGetAttribute(&result.num_sms, cudaDevAttrMultiProcessorCount, device));
  LLMCTL_CUDA_CHECK(
      cudaDeviceGetAttribute(&result.compute_major, cudaDevAttrComputeCapabilityMajor, device));
  result.programmatic = result.compute_major >= 9;
  return result;
}

}  // namespace llmctl::kernels::cuda
