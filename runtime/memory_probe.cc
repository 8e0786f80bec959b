#include "runtime/memory_probe.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "formats/core/error.h"

#if defined(__x86_64__)
#define LLMCTL_EVERY_ISA \
  __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define LLMCTL_EVERY_ISA
#endif

namespace llmctl::runtime {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

constexpr size_t kLine = 64;

/// A cache line; operations on it become as few instructions as the CPU has for 64 bytes.
using Line = uint64_t __attribute__((vector_size(kLine)));
using Floats = float __attribute__((vector_size(kLine)));

/// Requires: `data` starts on a line, `bytes` is a multiple of eight lines.
LLMCTL_EVERY_ISA
uint64_t add_up(const std::byte* data, size_t bytes) {
  Line sums[8] = {};
  for (size_t at = 0; at < bytes; at += 8 * kLine) {
    const auto* lines = reinterpret_cast<const Line*>(data + at);
    for (int i = 0; i < 8; ++i) sums[i] += lines[i];
  }
  Line total = {};
  for (const Line& sum : sums) total += sum;
  uint64_t result = 0;
  for (size_t i = 0; i < kLine / sizeof(uint64_t); ++i) result += total[i];
  return result;
}

constexpr int kChains = 10;
constexpr int kSteps = 1 << 19;  // some milliseconds, beside which waking a thread is nothing

LLMCTL_EVERY_ISA
float multiply_add(float factor) {
  Floats sums[kChains] = {};
  const Floats a = Floats{} + factor, b = Floats{} + 0.25F;
  for (int step = 0; step < kSteps; ++step) {
    for (Floats& sum : sums) sum = sum * a + b;
  }
  float result = 0;
  for (const Floats& sum : sums) result += sum[0];
  return result;
}

}  // namespace

MemoryProbe::MemoryProbe(size_t bytes) : size_(std::max<size_t>(bytes >> 21, 1) << 21) {
  void* address =
      ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED) {
    throw_errno("memory bandwidth", "cannot take " + std::to_string(size_) + " bytes of memory");
  }
  ::madvise(address, size_, MADV_HUGEPAGE);
  data_ = static_cast<std::byte*>(address);
  // Untouched pages would all be the one page of zeros.
  std::memset(data_, 1, size_);
}

MemoryProbe::~MemoryProbe() { ::munmap(data_, size_); }

double MemoryProbe::read_once(ThreadPool& pool) {
  const int64_t threads = pool.num_threads();
  const size_t share = size_ / static_cast<size_t>(threads) / (8 * kLine) * (8 * kLine);
  std::vector<uint64_t> sums(static_cast<size_t>(threads));
  const auto start = Clock::now();
  pool.parallel_for(threads, [&](int64_t i) {
    const auto index = static_cast<size_t>(i);
    sums[index] = add_up(data_ + index * share, share);
  });
  const double seconds = seconds_since(start);
  for (const uint64_t sum : sums) sum_ += sum;
  return static_cast<double>(share) * static_cast<double>(threads) / seconds;
}

double measure_flops(ThreadPool& pool) {
  const int64_t threads = pool.num_threads();
  std::vector<float> sums(static_cast<size_t>(threads));
  double best = 0;
  for (int round = 0; round < 5; ++round) {
    const auto start = Clock::now();
    pool.parallel_for(threads, [&](int64_t i) {
      sums[static_cast<size_t>(i)] += multiply_add(0.5F + static_cast<float>(round) * 0.001F);
    });
    const double operations = 2.0 * kSteps * kChains * (kLine / sizeof(float));
    best = std::max(best, operations * static_cast<double>(threads) / seconds_since(start));
  }
  return sums[0] == 0 ? 0 : best;
}

}  // namespace llmctl::runtime
