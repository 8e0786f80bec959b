// What the machine gives: bytes read per second by all threads, and multiply-adds per second.
#pragma once

#include <cstddef>
#include <cstdint>

#include "formats/core/thread_pool.h"

namespace llmctl::runtime {

/// A large buffer that is read over and over. Not thread-safe.
class MemoryProbe {
 public:
  /// Takes and touches the memory, in huge pages where the system has them. Throws kEnvironment
  /// when there is none.
  explicit MemoryProbe(size_t bytes);
  ~MemoryProbe();
  MemoryProbe(const MemoryProbe&) = delete;
  MemoryProbe& operator=(const MemoryProbe&) = delete;

  size_t size_bytes() const { return size_; }
  /// Bytes per second of one pass over the buffer: each thread reads an equal share in order, with
  /// eight accumulators and no prefetch.
  double read_once(ThreadPool& pool);

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
  uint64_t sum_ = 0;  // what the reads add up to, so that they are done
};

/// Floating-point operations per second of F32 multiply-adds in registers, over all threads; about
/// 20 ms.
double measure_flops(ThreadPool& pool);

}  // namespace llmctl::runtime
