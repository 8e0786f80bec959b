// What the device suite's parts share: device memory, random tensors with their host copy, timing
// by graph replay, and the report that goes to the terminal, to JSON and to Markdown.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "formats/core/dtype.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/launch_stream.h"

namespace llmctl::gpu {

/// Device memory, owned. Not zeroed.
class Buffer {
 public:
  explicit Buffer(size_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}
  Buffer& operator=(Buffer&&) = delete;
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  /// Every byte 0xFF: NaN in F32, F16 and BF16.
  void poison(cudaStream_t stream) const;
  void zero(cudaStream_t stream) const;
  void upload(const void* from, size_t bytes, cudaStream_t stream) const;
  /// Waits for the stream.
  std::vector<uint8_t> download(cudaStream_t stream) const;

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

/// A tensor on the device and the values it holds, widened, on the host.
struct Tensor {
  Buffer buffer;
  DType dtype;
  std::vector<float> values;
  std::vector<uint8_t> raw;
  void* data() const { return buffer.data(); }
};

/// `values` rounded to `dtype` and uploaded; `values` of the result are the rounded ones.
Tensor make_tensor(const std::vector<float>& values, DType dtype, cudaStream_t stream);
/// Normal-like values of the given standard deviation from a fixed-seed generator.
std::vector<float> random_values(int64_t count, float deviation, uint64_t seed);
Tensor random_tensor(int64_t count, float deviation, uint64_t seed, DType dtype,
                     cudaStream_t stream);
std::vector<float> widen(const std::vector<uint8_t>& raw, DType dtype);
Buffer upload_ints(const std::vector<int32_t>& values, cudaStream_t stream);

/// Fills with random F16/BF16/F32 values on the device: for weights too large to make on the host.
void fill_random(void* data, DType dtype, int64_t count, float deviation, uint64_t seed,
                 cudaStream_t stream);

/// norm(got - want) / norm(want) in F64; infinite when any element of `got` is not finite.
double relative_error(const std::vector<float>& got, const std::vector<float>& want);

/// Runs body(i) for i in [0, count) on every core.
void parallel_for(int64_t count, const std::function<void(int64_t)>& body);

/// Captures what `record` enqueues into a graph.
class Graph {
 public:
  Graph(cudaStream_t stream, const std::function<void()>& record);
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  void replay() const;
  /// Median time of one replay in microseconds, after warming up.
  double microseconds(int replays = 20) const;

 private:
  cudaStream_t stream_;
  cudaGraphExec_t exec_ = nullptr;
};

/// Median time of `record` in microseconds when run eagerly, between events.
double eager_microseconds(cudaStream_t stream, const std::function<void()>& record,
                          int repeats = 20);

/// Collects checks and figures in the order they come; every line is flushed as it is made.
class Report {
 public:
  explicit Report(std::string json_path) : json_path_(std::move(json_path)) {}

  void section(const std::string& title);
  /// Passes when error <= bound.
  void check(const std::string& name, double error, double bound);
  void check_true(const std::string& name, bool ok);
  /// A figure of the ceilings section, kept for the percentages of later ones.
  void figure(const std::string& name, double value, const std::string& unit,
              const std::string& note = {});
  double get(const std::string& name) const;
  /// A time of one launch that moves `bytes`.
  void bandwidth(const std::string& name, double microseconds, double bytes,
                 const std::string& note = {});

  /// Rewrites the JSON and Markdown files with all that is known.
  void flush() const;
  int failures() const { return failures_; }
  int checks() const { return checks_; }

 private:
  struct Row {
    std::string section{}, name{}, unit{}, note{};
    double value = 0;
    double microseconds = -1, read_share = -1, copy_share = -1;
    double bound = -1;
    bool ok = true;
  };
  void add(Row row);
  std::string json_path_, section_;
  std::vector<Row> rows_;
  int failures_ = 0, checks_ = 0;
};

/// The parts, in the order of their worth.
void measure_ceilings(Report& report, const kernels::cuda::LaunchStream& stream);
/// `small`: shapes that finish under compute-sanitizer.
void check_kernels(Report& report, const kernels::cuda::LaunchStream& stream, bool small);
void measure_kernels(Report& report, const kernels::cuda::LaunchStream& stream);
void measure_decode_chains(Report& report, const kernels::cuda::LaunchStream& stream);

}  // namespace llmctl::gpu
