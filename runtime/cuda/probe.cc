// What a card reads per second, measured beside the model that runs on it.
#include <algorithm>

#include "kernels/cuda/check.h"
#include "kernels/cuda/read_memory.h"
#include "runtime/cuda/back_end.h"
#include "runtime/cuda/memory.h"

namespace llmctl::runtime::cuda {
namespace {

/// An event that times.
class Timestamp {
 public:
  Timestamp() { LLMCTL_CUDA_CHECK(cudaEventCreate(&handle_)); }
  ~Timestamp() { cudaEventDestroy(handle_); }
  Timestamp(const Timestamp&) = delete;
  Timestamp& operator=(const Timestamp&) = delete;
  cudaEvent_t get() const { return handle_; }

 private:
  cudaEvent_t handle_ = nullptr;
};

class DeviceProbe final : public BandwidthProbe {
 public:
  explicit DeviceProbe(int num_devices)
      : num_devices_(num_devices),
        launch_(kernels::cuda::make_launch_stream(stream_.get())),
        sums_(kernels::cuda::kReadSums * sizeof(uint32_t)) {
    size_t free_bytes = 0, total_bytes = 0;
    LLMCTL_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
    // Far beyond the L2 of any card.
    data_ = DeviceMemory(std::min<size_t>(size_t{1} << 30, free_bytes / 8) / 256 * 256);
    LLMCTL_CUDA_CHECK(cudaMemsetAsync(data_.data(), 0x5a, data_.bytes(), stream_.get()));
    stream_.synchronize();
  }

  size_t host_bytes() const override { return 0; }
  double read_once(ThreadPool&) override {
    LLMCTL_CUDA_CHECK(cudaSetDevice(0));
    LLMCTL_CUDA_CHECK(cudaEventRecord(begin_.get(), stream_.get()));
    kernels::cuda::read_memory(sums_.as<uint32_t>(), data_.data(), data_.bytes(), launch_);
    LLMCTL_CUDA_CHECK(cudaEventRecord(end_.get(), stream_.get()));
    LLMCTL_CUDA_CHECK(cudaEventSynchronize(end_.get()));
    float milliseconds = 0;
    LLMCTL_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin_.get(), end_.get()));
    if (milliseconds <= 0) return 0;
    return static_cast<double>(data_.bytes()) * num_devices_ / milliseconds * 1e3;
  }

 private:
  int num_devices_;
  Stream stream_;
  kernels::cuda::LaunchStream launch_;
  DeviceMemory data_, sums_;
  Timestamp begin_, end_;
};

}  // namespace

std::string device_name() {
  count_devices();
  cudaDeviceProp properties{};
  LLMCTL_CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  return std::string(properties.name) + ", " + std::to_string(properties.totalGlobalMem >> 20) +
         " MiB";
}

std::unique_ptr<BandwidthProbe> make_probe(const Placement& placement) {
  LLMCTL_CUDA_CHECK(cudaSetDevice(0));
  return std::make_unique<DeviceProbe>(placement.num_devices);
}

}  // namespace llmctl::runtime::cuda
