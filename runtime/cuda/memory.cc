#include "runtime/cuda/memory.h"

#include <string>

#include "formats/core/error.h"
#include "kernels/cuda/check.h"

namespace llmctl::runtime::cuda {

DeviceMemory::DeviceMemory(size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  if (cudaMalloc(&data_, bytes) == cudaSuccess) return;
  cudaGetLastError();
  data_ = nullptr;
  int device = 0;
  size_t free_bytes = 0, total_bytes = 0;
  LLMCTL_CUDA_CHECK(cudaGetDevice(&device));
  LLMCTL_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
  throw Error(ErrorCode::kEnvironment,
              "no room for " + std::to_string((bytes >> 20) + 1) + " MiB more; " +
                  std::to_string(free_bytes >> 20) + " of " + std::to_string(total_bytes >> 20) +
                  " MiB are free",
              "cuda device " + std::to_string(device),
              "use more devices (--tp, --pp), fewer or shorter sequences, or --kv-memory");
}
DeviceMemory::~DeviceMemory() {
  if (data_ != nullptr) cudaFree(data_);
}

PinnedMemory::PinnedMemory(size_t bytes) : bytes_(bytes) {
  if (bytes > 0) LLMCTL_CUDA_CHECK(cudaHostAlloc(&data_, bytes, cudaHostAllocDefault));
}
PinnedMemory::~PinnedMemory() {
  if (data_ != nullptr) cudaFreeHost(data_);
}

Stream::Stream() { LLMCTL_CUDA_CHECK(cudaStreamCreateWithFlags(&handle_, cudaStreamNonBlocking)); }
Stream::~Stream() { cudaStreamDestroy(handle_); }
void Stream::synchronize() const { LLMCTL_CUDA_CHECK(cudaStreamSynchronize(handle_)); }

Event::Event() { LLMCTL_CUDA_CHECK(cudaEventCreateWithFlags(&handle_, cudaEventDisableTiming)); }
Event::~Event() { cudaEventDestroy(handle_); }
void Event::record(const Stream& stream) const {
  LLMCTL_CUDA_CHECK(cudaEventRecord(handle_, stream.get()));
}
void Event::synchronize() const { LLMCTL_CUDA_CHECK(cudaEventSynchronize(handle_)); }

Graph::Graph(const Stream& stream, const std::function<void()>& record) {
  // Other threads, which have ranks of their own, may allocate meanwhile.
  LLMCTL_CUDA_CHECK(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal));
  cudaGraph_t graph = nullptr;
  try {
    record();
  } catch (...) {
    cudaStreamEndCapture(stream.get(), &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    throw;
  }
  LLMCTL_CUDA_CHECK(cudaStreamEndCapture(stream.get(), &graph));
  const cudaError_t status = cudaGraphInstantiate(&exec_, graph, 0);
  cudaGraphDestroy(graph);
  LLMCTL_CUDA_CHECK(status);
}
Graph::~Graph() {
  if (exec_ != nullptr) cudaGraphExecDestroy(exec_);
}
void Graph::launch(const Stream& stream) const {
  LLMCTL_CUDA_CHECK(cudaGraphLaunch(exec_, stream.get()));
}

void copy_to_device(void* to, const void* from, size_t bytes, const Stream& stream) {
  if (bytes == 0) return;
  LLMCTL_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream.get()));
}
void copy_to_host(void* to, const void* from, size_t bytes, const Stream& stream) {
  if (bytes == 0) return;
  LLMCTL_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream.get()));
}

}  // namespace llmctl::runtime::cuda
