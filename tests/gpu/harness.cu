#include "tests/gpu/harness.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <random>
#include <thread>

namespace llmctl::gpu {

Buffer::Buffer(size_t bytes) : bytes_(bytes) {
  LLMCTL_CUDA_CHECK(cudaMalloc(&data_, std::max<size_t>(bytes, 16)));
}
Buffer::~Buffer() {
  if (data_ != nullptr) cudaFree(data_);
}
void Buffer::poison(cudaStream_t stream) const {
  LLMCTL_CUDA_CHECK(cudaMemsetAsync(data_, 0xff, bytes_, stream));
}
void Buffer::zero(cudaStream_t stream) const {
  LLMCTL_CUDA_CHECK(cudaMemsetAsync(data_, 0, bytes_, stream));
}
void Buffer::upload(const void* from, size_t bytes, cudaStream_t stream) const {
  LLMCTL_CUDA_CHECK(cudaMemcpyAsync(data_, from, bytes, cudaMemcpyHostToDevice, stream));
  LLMCTL_CUDA_CHECK(cudaStreamSynchronize(stream));
}
std::vector<uint8_t> Buffer::download(cudaStream_t stream) const {
  std::vector<uint8_t> to(bytes_);
  LLMCTL_CUDA_CHECK(cudaMemcpyAsync(to.data(), data_, bytes_, cudaMemcpyDeviceToHost, stream));
  LLMCTL_CUDA_CHECK(cudaStreamSynchronize(stream));
  return to;
}

Tensor make_tensor(const std::vector<float>& values, DType dtype, cudaStream_t stream) {
  std::vector<uint8_t> raw(values.size() * dtype_bytes(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::F32) {
      std::memcpy(raw.data() + 4 * i, &values[i], 4);
    } else if (dtype == DType::F16) {
      const __half h = __float2half_rn(values[i]);
      std::memcpy(raw.data() + 2 * i, &h, 2);
    } else {
      const __nv_bfloat16 b = __float2bfloat16_rn(values[i]);
      std::memcpy(raw.data() + 2 * i, &b, 2);
    }
  }
  Tensor t{Buffer(raw.size()), dtype, widen(raw, dtype), {}};
  t.buffer.upload(raw.data(), raw.size(), stream);
  t.raw = std::move(raw);
  return t;
}

std::vector<float> random_values(int64_t count, float deviation, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) {
    // The sum of four uniform numbers in (-1, 1) has variance 4/3.
    const uint64_t bits = random();
    float sum = 0;
    for (int i = 0; i < 4; ++i) {
      sum += static_cast<float>((bits >> (16 * i)) & 0xffff) / 32768.0F - 1.0F;
    }
    v = sum * deviation * 0.8660254F;
  }
  return values;
}

Tensor random_tensor(int64_t count, float deviation, uint64_t seed, DType dtype,
                     cudaStream_t stream) {
  return make_tensor(random_values(count, deviation, seed), dtype, stream);
}

std::vector<float> widen(const std::vector<uint8_t>& raw, DType dtype) {
  std::vector<float> values(raw.size() / dtype_bytes(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::F32) {
      std::memcpy(&values[i], raw.data() + 4 * i, 4);
    } else if (dtype == DType::F16) {
      __half h;
      std::memcpy(&h, raw.data() + 2 * i, 2);
      values[i] = __half2float(h);
    } else {
      __nv_bfloat16 b;
      std::memcpy(&b, raw.data() + 2 * i, 2);
      values[i] = __bfloat162float(b);
    }
  }
  return values;
}

Buffer upload_ints(const std::vector<int32_t>& values, cudaStream_t stream) {
  Buffer buffer(values.size() * 4);
  buffer.upload(values.data(), values.size() * 4, stream);
  return buffer;
}

double relative_error(const std::vector<float>& got, const std::vector<float>& want) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    if (!std::isfinite(got[i])) return std::numeric_limits<double>::infinity();
    const double d = static_cast<double>(got[i]) - want[i];
    difference += d * d;
    norm += static_cast<double>(want[i]) * want[i];
  }
  if (norm == 0) return difference == 0 ? 0 : std::numeric_limits<double>::infinity();
  return std::sqrt(difference / norm);
}

void parallel_for(int64_t count, const std::function<void(int64_t)>& body) {
  std::atomic<int64_t> next{0};
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < std::max(1U, std::thread::hardware_concurrency()); ++i) {
    threads.emplace_back([&] {
      for (int64_t at = next++; at < count; at = next++) body(at);
    });
  }
  for (std::thread& t : threads) t.join();
}

Graph::Graph(cudaStream_t stream, const std::function<void()>& record) : stream_(stream) {
  cudaGraph_t graph = nullptr;
  LLMCTL_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  record();
  LLMCTL_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  LLMCTL_CUDA_CHECK(cudaGraphInstantiate(&exec_, graph, 0));
  LLMCTL_CUDA_CHECK(cudaGraphDestroy(graph));
  LLMCTL_CUDA_CHECK(cudaGraphUpload(exec_, stream));
}
Graph::~Graph() {
  if (exec_ != nullptr) cudaGraphExecDestroy(exec_);
}
void Graph::replay() const { LLMCTL_CUDA_CHECK(cudaGraphLaunch(exec_, stream_)); }
double Graph::microseconds(int replays) const {
  return eager_microseconds(
      stream_, [&] { replay(); }, replays);
}

double eager_microseconds(cudaStream_t stream, const std::function<void()>& record, int repeats) {
  for (int i = 0; i < 3; ++i) record();
  std::vector<cudaEvent_t> events(static_cast<size_t>(repeats) + 1);
  for (cudaEvent_t& e : events) LLMCTL_CUDA_CHECK(cudaEventCreate(&e));
  LLMCTL_CUDA_CHECK(cudaEventRecord(events[0], stream));
  for (int i = 0; i < repeats; ++i) {
    record();
    LLMCTL_CUDA_CHECK(cudaEventRecord(events[static_cast<size_t>(i) + 1], stream));
  }
  LLMCTL_CUDA_CHECK(cudaStreamSynchronize(stream));
  std::vector<double> times;
  for (int i = 0; i < repeats; ++i) {
    float ms = 0;
    LLMCTL_CUDA_CHECK(cudaEventElapsedTime(&ms, events[static_cast<size_t>(i)],
                                           events[static_cast<size_t>(i) + 1]));
    times.push_back(ms * 1e3);
  }
  for (cudaEvent_t e : events) cudaEventDestroy(e);
  std::nth_element(times.begin(), times.begin() + repeats / 2, times.end());
  return times[static_cast<size_t>(repeats) / 2];
}

void Report::section(const std::string& title) {
  flush();
  section_ = title;
  std::printf("\n## %s\n", title.c_str());
  std::fflush(stdout);
}

void Report::add(Row row) {
  row.section = section_;
  rows_.push_back(std::move(row));
  std::fflush(stdout);
}

void Report::check(const std::string& name, double error, double bound) {
  const bool ok = error <= bound;
  ++checks_;
  if (!ok) ++failures_;
  std::printf("%s %-70s error %.2e bound %.0e\n", ok ? "ok  " : "FAIL", name.c_str(), error, bound);
  add({.name = name, .unit = "relative error", .value = error, .bound = bound, .ok = ok});
}

void Report::check_true(const std::string& name, bool ok) { check(name, ok ? 0 : 1, 0); }

void Report::figure(const std::string& name, double value, const std::string& unit,
                    const std::string& note) {
  std::printf("%-56s %12.4g %s %s\n", name.c_str(), value, unit.c_str(), note.c_str());
  add({.name = name, .unit = unit, .note = note, .value = value});
}

double Report::get(const std::string& name) const {
  for (const Row& row : rows_) {
    if (row.name == name) return row.value;
  }
  return -1;
}

void Report::bandwidth(const std::string& name, double microseconds, double bytes,
                       const std::string& note) {
  const double gbs = bytes / microseconds * 1e-3;
  const double read = get("read ceiling"), copy = get("copy ceiling");
  Row row{.name = name, .unit = "GB/s", .note = note, .value = gbs, .microseconds = microseconds};
  if (read > 0) row.read_share = 100 * gbs / read;
  if (copy > 0) row.copy_share = 100 * gbs / copy;
  std::printf("%-64s %9.2f us %8.1f GB/s  read %5.1f %%  copy %5.1f %% %s\n", name.c_str(),
              microseconds, gbs, row.read_share, row.copy_share, note.c_str());
  add(std::move(row));
}

void Report::flush() const {
  if (json_path_.empty()) return;
  std::ofstream json(json_path_);
  std::ofstream markdown(json_path_ + ".md");
  json << "{\"checks\": " << checks_ << ", \"failures\": " << failures_ << ", \"rows\": [\n";
  std::string section;
  for (size_t i = 0; i < rows_.size(); ++i) {
    const Row& r = rows_[i];
    char line[1024];
    std::snprintf(line, sizeof line,
                  "{\"section\": \"%s\", \"name\": \"%s\", \"value\": %.6g, \"unit\": \"%s\"",
                  r.section.c_str(), r.name.c_str(), std::isfinite(r.value) ? r.value : 1e30,
                  r.unit.c_str());
    json << line;
    if (r.microseconds >= 0) json << ", \"us\": " << r.microseconds;
    if (r.read_share >= 0) json << ", \"percent_of_read\": " << r.read_share;
    if (r.copy_share >= 0) json << ", \"percent_of_copy\": " << r.copy_share;
    if (r.bound >= 0)
      json << ", \"bound\": " << r.bound << ", \"ok\": " << (r.ok ? "true" : "false");
    if (!r.note.empty()) json << ", \"note\": \"" << r.note << "\"";
    json << (i + 1 < rows_.size() ? "},\n" : "}\n");

    if (r.section != section) {
      section = r.section;
      markdown << "\n## " << section << "\n\n";
      if (r.microseconds >= 0) {
        markdown << "| case | us | GB/s | % of read | % of copy | |\n|---|---|---|---|---|---|\n";
      } else if (r.bound >= 0) {
        markdown << "| check | relative error | bound | |\n|---|---|---|---|\n";
      } else {
        markdown << "| figure | value | unit | |\n|---|---|---|---|\n";
      }
    }
    if (r.microseconds >= 0) {
      std::snprintf(line, sizeof line, "| %s | %.2f | %.0f | %.1f | %.1f | %s |\n", r.name.c_str(),
                    r.microseconds, r.value, r.read_share, r.copy_share, r.note.c_str());
    } else if (r.bound >= 0) {
      std::snprintf(line, sizeof line, "| %s | %.2e | %.0e | %s |\n", r.name.c_str(), r.value,
                    r.bound, r.ok ? "ok" : "FAIL");
    } else {
      std::snprintf(line, sizeof line, "| %s | %.4g | %s | %s |\n", r.name.c_str(), r.value,
                    r.unit.c_str(), r.note.c_str());
    }
    markdown << line;
  }
  json << "]}\n";
}

}  // namespace llmctl::gpu
