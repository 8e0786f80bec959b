// The device suite's checks of every kernel, with the kernels run by a CPU (docs/gpu-status.md).
#include <cstdio>
#include <exception>

#include "tests/cuda_emulation/control.h"
#include "tests/gpu/harness.h"

int main() {
  using namespace llmctl;
  gpu::Report report("");
  cuda_emulation::set_settings({.num_sms = 3});  // so that attention splits sequences
  try {
    cudaStream_t handle = nullptr;
    LLMCTL_CUDA_CHECK(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking));
    gpu::check_kernels(report, kernels::cuda::make_launch_stream(handle), true);
    LLMCTL_CUDA_CHECK(cudaStreamDestroy(handle));
  } catch (const std::exception& e) {
    std::printf("cuda emulation: error: %s\n", e.what());
    return 4;
  }
  std::printf("\n%d checks, %d failed\n", report.checks(), report.failures());
  return report.failures() == 0 ? 0 : 1;
}
