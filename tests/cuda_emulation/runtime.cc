// Memory, streams, events and graphs. What is enqueued on a stream runs as late as it may: when
// somebody waits for it. So a missing wait shows, as it does on a device, only more surely.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "tests/cuda_emulation/block.h"
#include "tests/cuda_emulation/control.h"

using Work = std::function<cudaError_t()>;

struct CUstream_st {
  struct Item {
    Work work;
    // Of an event, and how often it had been recorded: the stream goes on when it has come to that.
    CUevent_st* awaited = nullptr;
    uint64_t record = 0;
  };
  std::deque<Item> items;
  std::vector<Work>* capture = nullptr;
};

struct CUevent_st {
  CUstream_st* stream = nullptr;
  uint64_t recorded = 0, reached = 0;
};
struct CUgraph_st {
  std::vector<Work> work;
};
struct CUgraphExec_st {
  std::vector<Work> work;
};

namespace {

using namespace llmctl::cuda_emulation;

struct Device {
  std::recursive_mutex mutex;  // guards everything below; held while kernels run
  Settings settings;
  std::map<std::uintptr_t, std::pair<size_t, int>> memory, pinned;  // begin: bytes, device
  std::vector<CUstream_st*> streams;
  std::map<int, size_t> used;
  cudaError_t last_error = cudaSuccess;
  cudaError_t sticky = cudaSuccess;
  uint64_t launches = 0, graph_launches = 0;
};

Device& device() {
  static Device instance;
  return instance;
}

thread_local int current_device = 0;

std::unique_lock<std::recursive_mutex> lock() {
  return std::unique_lock<std::recursive_mutex>(device().mutex);
}

cudaError_t result(cudaError_t status) {
  if (status != cudaSuccess) device().last_error = status;
  return status;
}

/// Runs what `stream` holds until it is empty or `event` has been reached `record` times.
cudaError_t drain(CUstream_st* stream, const CUevent_st* event = nullptr, uint64_t record = 0) {
  cudaError_t status = cudaSuccess;
  while (!stream->items.empty() && !(event != nullptr && event->reached >= record)) {
    CUstream_st::Item item = std::move(stream->items.front());
    stream->items.pop_front();
    if (item.awaited != nullptr) {
      if (item.awaited->reached < item.record && item.awaited->stream != nullptr) {
        status = std::max(status, drain(item.awaited->stream, item.awaited, item.record));
      }
      continue;
    }
    status = std::max(status, item.work());
  }
  if (status != cudaSuccess) device().sticky = status;
  return std::max(status, device().sticky);
}

cudaError_t drain_all() {
  cudaError_t status = cudaSuccess;
  for (CUstream_st* stream : device().streams) status = std::max(status, drain(stream));
  return status;
}

cudaError_t enqueue(CUstream_st* stream, Work work) {
  if (stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread) {
    std::fprintf(stderr, "cuda emulation: work for the default stream\n");
    return result(cudaErrorInvalidValue);
  }
  if (stream->capture != nullptr) {
    stream->capture->push_back(std::move(work));
  } else {
    stream->items.push_back({std::move(work)});
  }
  return result(device().sticky);
}

bool lies_in(const std::map<std::uintptr_t, std::pair<size_t, int>>& ranges, const void* p,
             size_t bytes) {
  const auto at = reinterpret_cast<std::uintptr_t>(p);
  auto next = ranges.upper_bound(at);
  if (next == ranges.begin()) return false;
  --next;
  return at - next->first <= next->second.first && bytes <= next->second.first - (at - next->first);
}

void copy_rows(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
               size_t height) {
  for (size_t i = 0; i < height; ++i) {
    std::memcpy(static_cast<char*>(to) + i * to_pitch,
                static_cast<const char*>(from) + i * from_pitch, width);
  }
}

}  // namespace

namespace llmctl::cuda_emulation {

void set_settings(const Settings& wanted) {
  const auto guard = lock();
  device().settings = wanted;
  device().last_error = device().sticky = cudaSuccess;
}
Settings settings() {
  const auto guard = lock();
  return device().settings;
}
uint64_t num_launches() {
  const auto guard = lock();
  return device().launches;
}
uint64_t num_graph_launches() {
  const auto guard = lock();
  return device().graph_launches;
}
size_t bytes_in_use() {
  const auto guard = lock();
  size_t sum = 0;
  for (const auto& [number, bytes] : device().used) sum += bytes;
  return sum;
}

cudaError_t enqueue_kernel(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                           std::function<void()> body) {
  const auto guard = lock();
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) {
    return result(cudaErrorInvalidValue);
  }
  auto launch = std::make_shared<Launch>(Launch{grid, block, shared_bytes, std::move(body)});
  return enqueue(stream, [launch] {
    const auto error = run_launch(*launch, device().launches++ % 2 == 1);
    if (!error) return cudaSuccess;
    std::fprintf(stderr, "cuda emulation: %s\n", error->c_str());
    return cudaErrorLaunchFailure;
  });
}

}  // namespace llmctl::cuda_emulation

cudaError_t cudaGetLastError() {
  const auto guard = lock();
  return std::exchange(device().last_error, cudaSuccess);
}

const char* cudaGetErrorName(cudaError_t status) {
  switch (status) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInsufficientDriver:
      return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorNoKernelImageForDevice:
      return "cudaErrorNoKernelImageForDevice";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
  }
  return "unknown";
}
const char* cudaGetErrorString(cudaError_t status) { return cudaGetErrorName(status); }

cudaError_t cudaDriverGetVersion(int* version) {
  const auto guard = lock();
  *version = device().settings.driver_version;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  const auto guard = lock();
  *version = device().settings.runtime_version;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  const auto guard = lock();
  const Settings& s = device().settings;
  *count = 0;
  if (s.driver_version < s.runtime_version / 1000 * 1000) {
    return result(cudaErrorInsufficientDriver);
  }
  if (s.device_count == 0) return result(cudaErrorNoDevice);
  *count = s.device_count;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int number) {
  const auto guard = lock();
  if (number < 0 || number >= device().settings.device_count) {
    return result(cudaErrorInvalidDevice);
  }
  current_device = number;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* number) {
  *number = current_device;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const auto guard = lock();
  const Settings& s = device().settings;
  *value = attribute == cudaDevAttrMultiProcessorCount      ? s.num_sms
           : attribute == cudaDevAttrComputeCapabilityMajor ? s.compute_major
                                                            : 0;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  const auto guard = lock();
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "emulated device");
  properties->totalGlobalMem = device().settings.memory_bytes;
  properties->major = device().settings.compute_major;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*)()) {
  const auto guard = lock();
  // As if the kernels were built for compute capability 9.
  if (device().settings.compute_major < 9) return result(cudaErrorNoKernelImageForDevice);
  attributes->binaryVersion = 90;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  const auto guard = lock();
  return result(drain_all());
}

cudaError_t cudaMalloc(void** p, size_t bytes) {
  const auto guard = lock();
  Device& d = device();
  *p = nullptr;
  if (bytes == 0) return cudaSuccess;
  if (bytes > d.settings.memory_bytes - std::min(d.settings.memory_bytes, d.used[current_device])) {
    return result(cudaErrorMemoryAllocation);
  }
  if (posix_memalign(p, 256, bytes) != 0) return result(cudaErrorMemoryAllocation);
  std::memset(*p, 0xff, bytes);
  d.memory[reinterpret_cast<std::uintptr_t>(*p)] = {bytes, current_device};
  d.used[current_device] += bytes;
  return cudaSuccess;
}
cudaError_t cudaFree(void* p) {
  const auto guard = lock();
  if (p == nullptr) return cudaSuccess;
  const cudaError_t status = drain_all();
  Device& d = device();
  const auto found = d.memory.find(reinterpret_cast<std::uintptr_t>(p));
  if (found == d.memory.end()) return result(cudaErrorInvalidValue);
  d.used[found->second.second] -= found->second.first;
  d.memory.erase(found);
  std::free(p);
  return result(status);
}
cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) {
  const auto guard = lock();
  *p = std::malloc(bytes);
  if (*p == nullptr) return result(cudaErrorMemoryAllocation);
  std::memset(*p, 0xff, bytes);
  device().pinned[reinterpret_cast<std::uintptr_t>(*p)] = {bytes, 0};
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* p) {
  const auto guard = lock();
  if (p == nullptr) return cudaSuccess;
  const cudaError_t status = drain_all();
  device().pinned.erase(reinterpret_cast<std::uintptr_t>(p));
  std::free(p);
  return result(status);
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  const auto guard = lock();
  Device& d = device();
  *total_bytes = d.settings.memory_bytes;
  *free_bytes = *total_bytes - std::min(*total_bytes, d.used[current_device]);
  return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
  const auto guard = lock();
  if (width == 0 || height == 0) return cudaSuccess;
  const Device& d = device();
  const size_t to_bytes = (height - 1) * to_pitch + width;
  const size_t from_bytes = (height - 1) * from_pitch + width;
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (to_device != lies_in(d.memory, to, to_bytes) ||
      from_device != lies_in(d.memory, from, from_bytes)) {
    std::fprintf(stderr, "cuda emulation: a copy of %zu bytes is not where it says\n", from_bytes);
    return result(cudaErrorInvalidValue);
  }
  // Host memory that is not pinned is read before the call returns, and written before it returns.
  if (!from_device && !lies_in(d.pinned, from, from_bytes)) {
    auto copy = std::make_shared<std::vector<char>>(width * height);
    copy_rows(copy->data(), width, from, from_pitch, width, height);
    return enqueue(stream, [=] {
      copy_rows(to, to_pitch, copy->data(), width, width, height);
      return cudaSuccess;
    });
  }
  const cudaError_t status = enqueue(stream, [=] {
    copy_rows(to, to_pitch, from, from_pitch, width, height);
    return cudaSuccess;
  });
  if (status != cudaSuccess || to_device || lies_in(d.pinned, to, to_bytes)) return status;
  return result(drain(stream));
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}
cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream) {
  const auto guard = lock();
  if (bytes == 0) return cudaSuccess;
  if (!lies_in(device().memory, p, bytes)) return result(cudaErrorInvalidValue);
  return enqueue(stream, [=] {
    std::memset(p, value, bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  const auto guard = lock();
  *stream = new CUstream_st;
  device().streams.push_back(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const auto guard = lock();
  const cudaError_t status = drain(stream);
  std::erase(device().streams, stream);
  delete stream;
  return result(status);
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const auto guard = lock();
  return result(drain(stream));
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const auto guard = lock();
  stream->items.push_back({{}, event, event->recorded});
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const auto guard = lock();
  const cudaError_t status = drain_all();
  delete event;
  return result(status);
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const auto guard = lock();
  event->stream = stream;
  const uint64_t record = ++event->recorded;
  return enqueue(stream, [=] {
    event->reached = record;
    return cudaSuccess;
  });
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const auto guard = lock();
  if (event->reached >= event->recorded || event->stream == nullptr) return cudaSuccess;
  return result(drain(event->stream, event, event->recorded));
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  *milliseconds = 0;
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const auto guard = lock();
  stream->capture = new std::vector<Work>;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const auto guard = lock();
  if (stream->capture == nullptr) return result(cudaErrorInvalidValue);
  *graph = new CUgraph_st{std::move(*stream->capture)};
  delete std::exchange(stream->capture, nullptr);
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  const auto guard = lock();
  ++device().graph_launches;
  for (const Work& work : exec->work) {
    if (const cudaError_t status = enqueue(stream, work); status != cudaSuccess) return status;
  }
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  const auto guard = lock();
  const cudaError_t status = drain_all();
  delete exec;
  return result(status);
}
