// The emulated machine itself: that it shows the mistakes a device would make of a wrong program.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"
#include "tests/cuda_emulation/control.h"

using namespace llmctl;
using kernels::cuda::LaunchStream;

namespace {

/// A stream and device memory for one test.
struct Bench {
  cudaStream_t handle = nullptr;
  float* data = nullptr;
  static constexpr size_t kBytes = 4096;
  Bench() {
    cuda_emulation::set_settings({});
    REQUIRE(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking) == cudaSuccess);
    REQUIRE(cudaMalloc(&data, kBytes) == cudaSuccess);
  }
  ~Bench() {
    cudaFree(data);
    cudaStreamDestroy(handle);
    cuda_emulation::set_settings({});
  }
  std::vector<float> download() const {
    std::vector<float> host(kBytes / 4);
    cudaMemcpyAsync(host.data(), data, kBytes, cudaMemcpyDeviceToHost, handle);
    return host;
  }
  template <typename... Params, typename... Args>
  void launch(void (*kernel)(Params...), unsigned threads, Args... args) const {
    kernels::cuda::launch(kernel, 1, threads, 0, LaunchStream{.handle = handle}, args...);
  }
};

__global__ void shift_kernel(float* y, bool with_barrier) {
  __shared__ float values[64];
  values[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (with_barrier) __syncthreads();
  y[threadIdx.x] = values[(threadIdx.x + 1) % 64];
}

__global__ void unset_kernel(float* y) {
  __shared__ float value;
  LLMCTL_DYNAMIC_SHARED(float, rest);
  y[0] = value;
  if (y[1] == 0) y[0] = rest[0];
}

__global__ void diverge_kernel(float* y) {
  if (threadIdx.x < 16) {
    y[threadIdx.x] = __shfl_xor_sync(0xffffffffU, 1.0F, 1);
  } else {
    __syncwarp();
  }
}

__global__ void forget_kernel(float* y) {
  if (threadIdx.x == 5) return;
  y[threadIdx.x] = __shfl_xor_sync(0xffffffffU, 1.0F, 1);
}

template <typename T>
__global__ void mma_kernel(float* c, const uint16_t* a, const uint16_t* b) {
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  const auto pair = [](const uint16_t* p) { return p[0] | static_cast<uint32_t>(p[1]) << 16; };
  float sums[4] = {};
  kernels::cuda::mma_16x8x16<T>(sums, pair(a + g * 16 + 2 * t), pair(a + (g + 8) * 16 + 2 * t),
                                pair(a + g * 16 + 2 * t + 8), pair(a + (g + 8) * 16 + 2 * t + 8),
                                pair(b + g * 16 + 2 * t), pair(b + g * 16 + 2 * t + 8));
  for (int i = 0; i < 4; ++i) c[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = sums[i];
}

}  // namespace

TEST_CASE("cuda emulation: a missing barrier shows") {
  const Bench bench;
  for (const bool with_barrier : {true, false}) {
    std::vector<std::vector<float>> runs;
    for (int i = 0; i < 2; ++i) {
      bench.launch(shift_kernel, 64, bench.data, with_barrier);
      runs.push_back(bench.download());
      runs.back().resize(64);
    }
    const bool same = std::memcmp(runs[0].data(), runs[1].data(), 256) == 0;
    CHECK(same == with_barrier);
    if (with_barrier) CHECK(runs[0][63] == 0.0F);
  }
}

TEST_CASE("cuda emulation: shared memory that was not written is NaN") {
  const Bench bench;
  for (const int byte : {0xff, 0}) {
    cudaMemsetAsync(bench.data, byte, Bench::kBytes, bench.handle);
    kernels::cuda::launch(unset_kernel, 1, 1, 4, LaunchStream{.handle = bench.handle}, bench.data);
    CHECK(std::isnan(bench.download()[0]));
  }
}

TEST_CASE("cuda emulation: lanes that disagree end the launch") {
  for (const auto kernel : {diverge_kernel, forget_kernel}) {
    const Bench bench;
    bench.launch(kernel, 32, bench.data);
    CHECK(cudaStreamSynchronize(bench.handle) == cudaErrorLaunchFailure);
    // As on a device, nothing works afterwards.
    CHECK(cudaStreamSynchronize(bench.handle) == cudaErrorLaunchFailure);
    cuda_emulation::set_settings({});
  }
}

TEST_CASE("cuda emulation: the tensor core multiplies") {
  const Bench bench;
  std::mt19937 random(7);
  std::vector<uint16_t> operands(16 * 16 + 8 * 16);
  for (const bool is_bf16 : {false, true}) {
    const auto value = [&](uint16_t bits) {
      return is_bf16 ? cuda_emulation::bfloat16_value(bits) : cuda_emulation::half_value(bits);
    };
    for (uint16_t& bits : operands) {
      const float v = static_cast<float>(random() % 17) - 8.0F;  // sums are exact
      bits = is_bf16 ? cuda_emulation::bfloat16_bits(v) : cuda_emulation::half_bits(v);
    }
    uint16_t* device = nullptr;
    REQUIRE(cudaMalloc(&device, operands.size() * 2) == cudaSuccess);
    cudaMemcpyAsync(device, operands.data(), operands.size() * 2, cudaMemcpyHostToDevice,
                    bench.handle);
    bench.launch(is_bf16 ? mma_kernel<__nv_bfloat16> : mma_kernel<__half>, 32, bench.data, device,
                 device + 256);
    const std::vector<float> got = bench.download();
    for (size_t row = 0; row < 16; ++row) {
      for (size_t column = 0; column < 8; ++column) {
        float want = 0;
        for (size_t k = 0; k < 16; ++k) {
          want += value(operands[row * 16 + k]) * value(operands[256 + column * 16 + k]);
        }
        CHECK(got[row * 8 + column] == want);
      }
    }
    cudaFree(device);
  }
}

TEST_CASE("cuda emulation: every F16 and BF16 survives the way through F32") {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float as_half = cuda_emulation::half_value(half);
    if (!std::isnan(as_half)) REQUIRE(cuda_emulation::half_bits(as_half) == half);
    const float as_bfloat16 = cuda_emulation::bfloat16_value(half);
    if (!std::isnan(as_bfloat16)) REQUIRE(cuda_emulation::bfloat16_bits(as_bfloat16) == half);
  }
  CHECK(cuda_emulation::half_bits(1.0F + 0x1p-11F) == 0x3c00);             // ties to even
  CHECK(cuda_emulation::half_bits(1.0F + 0x1p-11F + 0x1p-20F) == 0x3c01);  // above the tie
  CHECK(cuda_emulation::half_bits(65520.0F) == 0x7c00);
  CHECK(cuda_emulation::half_bits(-0x1p-25F) == 0x8000);
  CHECK(cuda_emulation::bfloat16_bits(1.0F + 0x1p-8F) == 0x3f80);
}

TEST_CASE("cuda emulation: work waits until somebody waits for it") {
  const Bench bench;
  float* pinned = nullptr;
  REQUIRE(cudaHostAlloc(reinterpret_cast<void**>(&pinned), 4, cudaHostAllocDefault) == cudaSuccess);
  *pinned = 1.0F;
  cudaMemcpyAsync(bench.data, pinned, 4, cudaMemcpyHostToDevice, bench.handle);
  *pinned = 2.0F;  // too early
  cudaMemcpyAsync(pinned, bench.data, 4, cudaMemcpyDeviceToHost, bench.handle);
  cudaEvent_t event = nullptr;
  cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  cudaEventRecord(event, bench.handle);
  *pinned = 3.0F;
  cudaEventSynchronize(event);
  CHECK(*pinned == 3.0F);
  // Of another stream's work only what was before the event.
  cudaStream_t other = nullptr;
  cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking);
  cudaMemsetAsync(bench.data, 0, 4, bench.handle);
  cudaEventRecord(event, bench.handle);
  cudaMemsetAsync(bench.data, 0x40, 4, bench.handle);
  cudaStreamWaitEvent(other, event);
  cudaMemcpyAsync(pinned, bench.data, 4, cudaMemcpyDeviceToHost, other);
  cudaStreamSynchronize(other);
  CHECK(*pinned == 0.0F);
  cudaStreamDestroy(other);
  cudaEventDestroy(event);
  cudaFreeHost(pinned);
}
