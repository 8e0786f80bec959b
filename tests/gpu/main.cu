// The device suite: measures the card's ceilings, holds every kernel to the CPU reference, and
// times kernels and chains of them. Needs no test framework, so that it builds with nvcc and g++
// alone.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <exception>
#include <string>

#include "tests/gpu/harness.h"

namespace {

__global__ void write_past_the_end_kernel(int* p, int count) { p[count] = 1; }

/// What compute-sanitizer must refuse; shows that it looks at all.
int run_canary() {
  int* p = nullptr;
  if (cudaMalloc(&p, 4096) != cudaSuccess) return 4;
  write_past_the_end_kernel<<<1, 1>>>(p, 1024);
  const cudaError_t status = cudaDeviceSynchronize();
  std::printf("canary: %s\n", cudaGetErrorString(status));
  cudaFree(p);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace llmctl;
  bool ceilings = false, check = false, small = false, bench = false, chain = false;
  std::string json;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--ceilings") {
      ceilings = true;
    } else if (word == "--check") {
      check = true;
    } else if (word == "--check-small") {
      check = small = true;
    } else if (word == "--bench") {
      bench = true;
    } else if (word == "--chain") {
      chain = true;
    } else if (word == "--canary") {
      return run_canary();
    } else if (word == "--json" && i + 1 < argc) {
      json = argv[++i];
    } else {
      std::fprintf(
          stderr,
          "usage: %s [--ceilings] [--check | --check-small] [--bench] [--chain] [--json F]\n",
          argv[0]);
      return 2;
    }
  }
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("gpu suite left out: no CUDA device on this machine\n");
    return 77;  // ctest's SKIP_RETURN_CODE
  }
  if (!(ceilings || check || bench || chain)) ceilings = check = bench = chain = true;
  gpu::Report report(json);
  try {
    LLMCTL_CUDA_CHECK(cudaSetDevice(0));
    cudaStream_t handle = nullptr;
    LLMCTL_CUDA_CHECK(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking));
    const kernels::cuda::LaunchStream stream = kernels::cuda::make_launch_stream(handle);
    if (ceilings) gpu::measure_ceilings(report, stream);
    if (check) gpu::check_kernels(report, stream, small);
    if (bench) gpu::measure_kernels(report, stream);
    if (chain) gpu::measure_decode_chains(report, stream);
    LLMCTL_CUDA_CHECK(cudaStreamDestroy(handle));
  } catch (const std::exception& e) {
    std::printf("gpu suite: error: %s\n", e.what());
    report.flush();
    return 4;
  }
  report.flush();
  std::printf("\n%d checks, %d failed\n", report.checks(), report.failures());
  return report.failures() == 0 ? 0 : 1;
}
