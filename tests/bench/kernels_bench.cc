// Times the CPU kernels beside the machine's own limits: bytes copied and cast, and the matrix
// product with cold weights. Usage: llmctl_bench_kernels [copy] [linear] [attention] [--isa NAME]
// [--threads N]
// With --cpu-time the clock is the process's CPU time over the threads used, for a machine that
// others share: it leaves out waiting for a core, not the others' use of caches and memory.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <string>
#include <vector>

#include "kernels/cpu/dispatch.h"

namespace {

using namespace llmctl;
using kernels::Box;
using kernels::Isa;
using kernels::Overflow;

bool use_cpu_time = false;

double now_seconds() {
  timespec time{};
  ::clock_gettime(use_cpu_time ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

/// Seconds of the median of `rounds` runs on `num_threads` threads, after one that is not counted.
double median_seconds(int rounds, int num_threads, const std::function<void()>& body) {
  std::vector<double> seconds;
  for (int i = 0; i <= rounds; ++i) {
    const double start = now_seconds();
    body();
    const double took = now_seconds() - start;
    if (i > 0) seconds.push_back(use_cpu_time ? took / num_threads : took);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

/// Memory that has been touched, aligned to a page.
class Buffer {
 public:
  explicit Buffer(size_t bytes) : data_(static_cast<char*>(std::aligned_alloc(4096, bytes))) {
    for (size_t i = 0; i < bytes; i += 8) {
      const uint64_t noise = (i * 0x9E37'79B9'7F4A'7C15U >> 9) & 0x3FFF'3FFF'3FFF'3FFFU;
      std::memcpy(data_ + i, &noise, 8);
    }
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  char* data() const { return data_; }
  const float* floats() const { return reinterpret_cast<const float*>(data_); }

 private:
  char* data_;
};

void bench_box(Isa isa, const char* name, DType src, DType dst, const Box& box, Buffer& from,
               Buffer& to) {
  double elements = 1;
  for (int i = 0; i < box.num_axes; ++i) elements *= static_cast<double>(box.extents[i]);
  const double seconds = median_seconds(5, 1, [&] {
    kernels::cpu::copy_box(isa, to.data(), dst, from.data(), src, box, Overflow::kInf);
  });
  std::printf("  %-46s %5s -> %-5s %6.2f GB/s of source\n", name,
              std::string(dtype_name(src)).c_str(), std::string(dtype_name(dst)).c_str(),
              elements * static_cast<double>(dtype_bytes(src)) / seconds * 1e-9);
}

void bench_copy(Isa isa) {
  constexpr int64_t kSide = 4096;
  Buffer from(kSide * kSide * 4);
  Buffer to(kSide * kSide * 4);
  std::printf("copy_box, one thread, %s\n", std::string(kernels::isa_name(isa)).c_str());
  const double seconds =
      median_seconds(5, 1, [&] { std::memcpy(to.data(), from.data(), kSide * kSide * 4); });
  std::printf("  %-46s %16s %6.2f GB/s of source\n", "memcpy 64 MiB", "",
              kSide * kSide * 4 / seconds * 1e-9);
  const Box straight{1, {kSide * kSide}, {1}, {1}};
  const Box transpose{2, {kSide, kSide}, {kSide, 1}, {1, kSide}};
  const Box slab{2, {512, kSide}, {kSide, 1}, {1, kSide}};
  const Box odd{2, {4095, 4001}, {4001, 1}, {1, 4095}};
  for (const DType to_dtype : {DType::F32, DType::F16, DType::BF16}) {
    bench_box(isa, "contiguous", DType::F32, to_dtype, straight, from, to);
  }
  bench_box(isa, "contiguous", DType::BF16, DType::F16, straight, from, to);
  bench_box(isa, "contiguous", DType::F16, DType::BF16, straight, from, to);
  bench_box(isa, "contiguous", DType::F16, DType::F32, straight, from, to);
  for (const int64_t run : {16, 32, 128, 512}) {
    const Box columns{3, {kSide, 8, run}, {8 * run, run, 1}, {run, kSide * run, 1}};
    bench_box(isa, ("column split, runs of " + std::to_string(run) + " elements").c_str(),
              DType::F16, DType::F16, columns, from, to);
    bench_box(isa, ("column split, runs of " + std::to_string(run) + " elements").c_str(),
              DType::F32, DType::F16, columns, from, to);
  }
  const Box merge{3, {kSide, 8, 512}, {512, kSide * 512, 1}, {8 * 512, 512, 1}};
  bench_box(isa, "column merge, runs of 512 elements", DType::F16, DType::F16, merge, from, to);
  bench_box(isa, "column merge, runs of 512 elements", DType::F32, DType::F16, merge, from, to);
  bench_box(isa, "transpose 4096 x 4096", DType::U8, DType::U8, transpose, from, to);
  bench_box(isa, "transpose 4096 x 4096", DType::F16, DType::F16, transpose, from, to);
  bench_box(isa, "transpose 512 x 4096 into rows 4096 apart", DType::F16, DType::F16, slab, from,
            to);
  bench_box(isa, "transpose 4095 x 4001", DType::F16, DType::F16, odd, from, to);
  bench_box(isa, "transpose 4096 x 4096", DType::F32, DType::F32, transpose, from, to);
  bench_box(isa, "transpose 4096 x 4096", DType::F32, DType::F16, transpose, from, to);
  bench_box(isa, "transpose 4096 x 4096", DType::F32, DType::BF16, transpose, from, to);
  bench_box(isa, "transpose 4095 x 4001", DType::F32, DType::F16, odd, from, to);
  bench_box(isa, "transpose 4096 x 4096", DType::BF16, DType::F16, transpose, from, to);
  bench_box(isa, "transpose 4096 x 4096", DType::F16, DType::F32, transpose, from, to);
  // (hidden, heads, two, half) -> (hidden, heads, half, two): rotary order on the fast axis.
  const Box rotary{4, {kSide, 32, 64, 2}, {kSide, 128, 1, 64}, {kSide, 128, 2, 1}};
  bench_box(isa, "interleave pairs, 128 per head", DType::F16, DType::F16, rotary, from, to);
  const Box rotary_t{
      4, {kSide, 32, 64, 2}, {1, kSide * 128, kSide, kSide * 64}, {kSide, 128, 2, 1}};
  bench_box(isa, "transpose and interleave pairs", DType::F16, DType::F16, rotary_t, from, to);
}

/// Plain reading by the same threads, half each, as fast as they can: what decode cannot beat.
void read_all(const char* from, size_t bytes, ThreadPool& pool, std::vector<uint64_t>& sums) {
  const auto parts = static_cast<size_t>(pool.num_threads());
  const size_t part = bytes / parts / 64 * 64;
  const auto body = [&](int64_t i) {
    const char* at = from + static_cast<size_t>(i) * part;
    using Lane = uint64_t __attribute__((vector_size(64)));
    Lane sum[8] = {};
    for (size_t j = 0; j + 512 <= part; j += 512) {
      for (size_t k = 0; k < 8; ++k) {
        Lane line;
        std::memcpy(&line, at + j + 64 * k, 64);
        sum[k] ^= line;
      }
    }
    uint64_t folded = 0;
    for (const Lane& lane : sum) folded ^= lane[0] ^ lane[7];
    sums[static_cast<size_t>(i)] += folded;
  };
  pool.parallel_for(static_cast<int64_t>(parts), std::ref(body));
}

/// The best and the median of times.
struct Times {
  std::vector<double> seconds;

  void add(double s) { seconds.push_back(s); }
  double best() { return *std::min_element(seconds.begin(), seconds.end()); }
  double median() {
    std::sort(seconds.begin(), seconds.end());
    return seconds[seconds.size() / 2];
  }
};

template <typename Body>
double seconds_of(const Body& body, const ThreadPool& pool) {
  const double start = now_seconds();
  body();
  return (now_seconds() - start) / (use_cpu_time ? pool.num_threads() : 1);
}

void bench_linear(Isa isa, int threads) {
  constexpr size_t kBytes = size_t{1} << 30;
  Buffer weights(kBytes);
  ThreadPool pool(threads);
  std::vector<uint64_t> sums(64);
  std::printf(
      "linear, %d threads, %s, cold weights; per cent of reading the same bytes, in turn with it, "
      "best (median)\n",
      pool.num_threads(), std::string(kernels::isa_name(isa)).c_str());
  struct Shape {
    int64_t n, k;
  };
  for (const Shape& shape : {Shape{2048, 2048}, Shape{11264, 2048}, Shape{2048, 5632}}) {
    const Buffer x(static_cast<size_t>(512 * shape.k * 4));
    Buffer y(static_cast<size_t>(512 * shape.n * 4));
    std::vector<float> scratch(static_cast<size_t>(512 * shape.k));
    using kernels::Activations;
    struct Kind {
      DType dtype;
      Activations activations;
      const char* name;
    };
    for (const auto& [dtype, activations, name] :
         {Kind{DType::F32, Activations::kF32, "F32"}, Kind{DType::F16, Activations::kF32, "F16"},
          Kind{DType::BF16, Activations::kF32, "BF16"},
          Kind{DType::BF16, Activations::kBF16, "BF16 x BF16"}}) {
      const size_t matrix_bytes = static_cast<size_t>(shape.n * shape.k) * dtype_bytes(dtype);
      const size_t num_matrices = kBytes / matrix_bytes;
      size_t next = 0;
      double one_token = 0;
      for (const int64_t tokens : {1, 2, 4, 8, 16, 128, 512}) {
        const bool is_cold = tokens <= 16;
        Times reading, product;
        for (size_t i = 0; i < (is_cold ? 40U : 3U); ++i) {
          if (is_cold) {
            next = (next + 1) % num_matrices;
            reading.add(seconds_of(
                [&] { read_all(weights.data() + next * matrix_bytes, matrix_bytes, pool, sums); },
                pool));
          }
          next = (next + 1) % num_matrices;
          const kernels::PanelMatrix w{weights.data() + next * matrix_bytes, dtype, shape.n,
                                       shape.k};
          product.add(seconds_of(
              [&] {
                kernels::cpu::linear(isa, reinterpret_cast<float*>(y.data()), x.floats(), w,
                                     nullptr, tokens, shape.n, activations, scratch.data(), pool);
              },
              pool));
        }
        const auto bytes = static_cast<double>(matrix_bytes);
        std::printf("  %5ld x %-5ld %-11s %3ld tokens ", shape.n, shape.k, name, tokens);
        if (tokens == 1) one_token = product.best();
        if (is_cold) {
          std::printf("%5.1f GB/s %4.0f%% (%3.0f%%) of %5.1f GB/s, %4.1f x one token, ",
                      bytes / product.best() * 1e-9, 100 * reading.best() / product.best(),
                      100 * reading.median() / product.median(), bytes / reading.best() * 1e-9,
                      static_cast<double>(tokens) * one_token / product.best());
        }
        std::printf("%7.1f GFLOP/s\n",
                    2e-9 * static_cast<double>(shape.n * shape.k * tokens) / product.best());
      }
    }
  }
}

void bench_attention(Isa isa) {
  ThreadPool pool(available_cores());
  const int64_t num_heads = 32;
  const int64_t head_dim = 64;
  std::printf("attention, %d threads, %s, %ld heads of %ld\n", pool.num_threads(),
              std::string(kernels::isa_name(isa)).c_str(), num_heads, head_dim);
  for (const int64_t num_kv_heads : {32, 4}) {
    for (const int64_t length : {128, 512, 4096}) {
      const int64_t page_size = 16;
      kernels::AttentionArgs args;
      args.kv.num_kv_heads = num_kv_heads;
      args.kv.head_dim = head_dim;
      args.kv.page_size = page_size;
      args.kv.page_stride = 2 * num_kv_heads * page_size * head_dim;
      const int64_t num_pages = length / page_size;
      const Buffer cache(static_cast<size_t>(num_pages * args.kv.page_stride * 4));
      args.kv.pool = cache.data();
      std::vector<int32_t> table;
      for (int64_t i = 0; i < num_pages; ++i) table.push_back(static_cast<int32_t>(i));
      for (const bool prefill : {false, true}) {
        if (prefill && length > 512) continue;
        args.num_tokens = prefill ? length : 1;
        args.num_heads = num_heads;
        args.q_stride = num_heads * head_dim;
        args.scale = 0.125F;
        const auto count = static_cast<size_t>(args.num_tokens * args.q_stride);
        std::vector<float> q(count, 0.1F);
        std::vector<float> y(count);
        std::vector<int32_t> positions;
        for (int64_t t = 0; t < args.num_tokens; ++t) {
          positions.push_back(static_cast<int32_t>(prefill ? t : length - 1));
        }
        const std::vector<const int32_t*> tables(positions.size(), table.data());
        args.q = q.data();
        args.positions = positions.data();
        args.block_tables = tables.data();
        const double seconds = median_seconds(
            7, pool.num_threads(), [&] { kernels::cpu::attention(isa, y.data(), args, pool); });
        double pairs = 0;
        for (const int32_t position : positions) pairs += position + 1;
        std::printf("  %2ld kv heads, %s of %4ld: %8.1f us, %6.1f GFLOP/s\n", num_kv_heads,
                    prefill ? "prefill" : "decode ", length, seconds * 1e6,
                    4e-9 * pairs * static_cast<double>(num_heads * head_dim) / seconds);
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> wanted(argv + 1, argv + argc);
  Isa isa = kernels::active_isa();
  for (size_t i = 0; i + 1 < wanted.size(); ++i) {
    if (wanted[i] != "--isa") continue;
    for (const Isa candidate : kernels::available_isas()) {
      if (kernels::isa_name(candidate) == wanted[i + 1]) isa = candidate;
    }
    wanted.erase(wanted.begin() + static_cast<std::ptrdiff_t>(i),
                 wanted.begin() + static_cast<std::ptrdiff_t>(i) + 2);
  }
  int threads = available_cores();
  for (size_t i = 0; i + 1 < wanted.size(); ++i) {
    if (wanted[i] != "--threads") continue;
    threads = std::atoi(wanted[i + 1].c_str());
    wanted.erase(wanted.begin() + static_cast<std::ptrdiff_t>(i),
                 wanted.begin() + static_cast<std::ptrdiff_t>(i) + 2);
  }
  use_cpu_time = std::erase(wanted, "--cpu-time") > 0;
  const auto asked = [&](const char* name) {
    return wanted.empty() || std::count(wanted.begin(), wanted.end(), name) > 0;
  };
  if (asked("copy")) bench_copy(isa);
  if (asked("linear")) bench_linear(isa, threads);
  if (asked("attention")) bench_attention(isa);
  return 0;
}
