// How the ranks of one model talk: tensor-parallel collectives and pipeline hand-over.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

namespace llmctl::runtime {

/// One rank's end of a group of `size()` ranks. Each object belongs to one thread; the calls are
/// collective and must be made by all ranks in the same order. When any rank calls `abort`, every
/// waiting or later call on every rank throws Error (kEnvironment) naming the first failing rank.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  virtual void barrier() = 0;
  /// recv = the ranks' `bytes_per_rank` bytes side by side in rank order, on every rank.
  virtual void all_gather(void* recv, const void* send, size_t bytes_per_rank) = 0;
  /// data[i] = sum over ranks in rank order, the same bits on every rank.
  virtual void all_reduce_sum(float* data, size_t count) = 0;
  virtual void broadcast(void* data, size_t bytes, int root) = 0;
  /// Blocking, in order per pair of ranks.
  virtual void send(const void* data, size_t bytes, int to) = 0;
  virtual void recv(void* data, size_t bytes, int from) = 0;
  /// Wakes every rank with `reason`. Safe from any thread; first caller wins.
  virtual void abort(const std::string& reason) = 0;
};

/// Communicators for `size` ranks that are threads of this process; index = rank.
std::vector<std::unique_ptr<Communicator>> make_thread_communicators(int size);

}  // namespace llmctl::runtime
