// What the machine gives: bytes read per second by all threads, and multiply-adds per second.
#pragma once

#include <cstddef>
#include <cstdint>

#include "formats/core/thread_pool.h"

namespace llmctl::runtime {

/// Memory that is read over and over. Not thread-safe.
class BandwidthProbe {
 public:
  virtual ~BandwidthProbe() = default;
  /// Of this process's memory, what the probe takes.
  virtual size_t host_bytes() const = 0;
  /// Bytes per second of one pass over the memory.
  virtual double read_once(ThreadPool& pool) = 0;
};

/// A large buffer in the machine's memory.
class MemoryProbe final : public BandwidthProbe {
 public:
  /// Takes and touches the memory, in huge pages where the system has them. Throws kEnvironment
  /// when there is none.
  explicit MemoryProbe(size_t bytes);
  ~MemoryProbe() override;
  MemoryProbe(const MemoryProbe&) = delete;
  MemoryProbe& operator=(const MemoryProbe&) = delete;

  size_t host_bytes() const override { return size_; }
  /// Each thread reads an equal share in order, with eight accumulators and no prefetch.
  double read_once(ThreadPool& pool) override;

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
  uint64_t sum_ = 0;  // what the reads add up to, so that they are done
};

/// Floating-point operations per second of F32 multiply-adds in registers, over all threads; about
/// 20 ms.
double measure_flops(ThreadPool& pool);

}  // namespace llmctl::runtime
