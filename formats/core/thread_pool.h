// A fixed set of worker threads that share one loop at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace llmctl {

/// Runs loops over index ranges on `num_threads` threads, the caller's included. One loop at a
/// time per pool; a loop body must not call back into the same pool. Waiting spins for tens of
/// microseconds when there are no more threads than cores, then sleeps, so that a shared core is
/// not burnt. A worker that comes when all is claimed is not waited for.
class ThreadPool {
 public:
  /// Requires: num_threads >= 1. With 1 everything runs on the calling thread.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  /// Calls `body(i)` for every i in [0, count), each once, claimed one after the other from a
  /// shared counter; returns when all are done. The first exception cancels what is not yet
  /// claimed and is rethrown here. `work_bytes`: about what the whole loop reads, where it may be
  /// little; workers that sleep are then left asleep if it is.
  void parallel_for(int64_t count, const std::function<void(int64_t)>& body,
                    int64_t work_bytes = INT64_MAX);

 private:
  struct State;
  int num_threads_;
  std::unique_ptr<State> state_;
};

/// Cores this process may use (affinity mask and cgroup quota), at least 1.
int available_cores();

}  // namespace llmctl
