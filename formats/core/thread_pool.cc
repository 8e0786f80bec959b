#include "formats/core/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <exception>
#include <fstream>
#include <mutex>
#include <new>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "formats/core/error.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace llmctl {
namespace {

void cpu_relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

/// Long enough to bridge the gap between two loops of one token, short enough that a waiter does
/// not eat the time slice a worker needs.
constexpr auto kSpinTime = std::chrono::microseconds(40);

template <typename Ready>
bool spin_until(const Ready& ready) {
  const auto end = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < 16; ++i) {
      if (ready()) return true;
      cpu_relax();
    }
  } while (std::chrono::steady_clock::now() < end);
  return ready();
}

}  // namespace

int available_cores() {
  int cores = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) cores = std::max(1, CPU_COUNT(&set));
  std::ifstream quota_file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (quota_file >> quota >> period && quota != "max" && period > 0) {
    cores = std::min(cores, std::max(1, static_cast<int>(std::ceil(std::stod(quota) / period))));
  }
  return cores;
}

struct ThreadPool::State {
  std::mutex mutex;
  std::condition_variable work_ready, work_done;
  // Written under `mutex`; read without it by spinning threads.
  std::atomic<uint64_t> generation{0};
  std::atomic<int> busy{0};
  std::atomic<bool> stop{false};
  std::atomic<int64_t> next{0};
  int64_t count = 0;
  const std::function<void(int64_t)>* body = nullptr;
  std::exception_ptr error;
  bool may_spin = false;
  std::vector<std::thread> threads;

  void run_claimed() {
    for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) {
      try {
        (*body)(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!error) error = std::current_exception();
        next.store(count);
      }
    }
  }

  void join_all() {
    {
      const std::lock_guard lock(mutex);
      stop.store(true);
    }
    work_ready.notify_all();
    for (std::thread& thread : threads) thread.join();
  }

  void worker() {
    uint64_t seen = 0;
    for (;;) {
      const auto ready = [&] { return stop.load() || generation.load() != seen; };
      if (!(may_spin && spin_until(ready))) {
        std::unique_lock lock(mutex);
        work_ready.wait(lock, ready);
      }
      if (stop.load()) return;
      seen = generation.load();
      run_claimed();
      if (busy.fetch_sub(1) == 1) {
        const std::lock_guard lock(mutex);
        work_done.notify_one();
      }
    }
  }
};

ThreadPool::ThreadPool(int num_threads)
    : num_threads_(std::max(1, num_threads)), state_(std::make_unique<State>()) {
  state_->may_spin = num_threads_ <= available_cores();
  try {
    state_->threads.reserve(static_cast<size_t>(num_threads_));
    for (int i = 1; i < num_threads_; ++i) {
      state_->threads.emplace_back([state = state_.get()] { state->worker(); });
    }
  } catch (const std::bad_alloc&) {
    state_->join_all();
    throw;
  } catch (const std::system_error& e) {
    const size_t started = state_->threads.size() + 1;
    state_->join_all();  // a joinable thread must not be destroyed
    throw Error(
        ErrorCode::kEnvironment,
        "only " + std::to_string(started) + " threads could be started: " + e.code().message(),
        std::to_string(num_threads_) + " threads", "ask for fewer");
  }
}

ThreadPool::~ThreadPool() { state_->join_all(); }

void ThreadPool::parallel_for(int64_t count, const std::function<void(int64_t)>& body) {
  if (count <= 0) return;
  if (num_threads_ == 1 || count == 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  State& s = *state_;
  {
    const std::lock_guard lock(s.mutex);
    if (s.body != nullptr) {
      throw Error(ErrorCode::kInternal, "a thread pool runs one loop at a time");
    }
    s.count = count;
    s.body = &body;
    s.error = nullptr;
    s.next.store(0);
    s.busy.store(num_threads_ - 1);
    s.generation.fetch_add(1);
  }
  s.work_ready.notify_all();
  s.run_claimed();
  const auto done = [&] { return s.busy.load() == 0; };
  if (!(s.may_spin && spin_until(done))) {
    std::unique_lock lock(s.mutex);
    s.work_done.wait(lock, done);
  }
  // The last worker signals under the lock: take it once, so that it has left before we return.
  std::exception_ptr error;
  {
    const std::lock_guard lock(s.mutex);
    s.body = nullptr;
    error = std::exchange(s.error, nullptr);
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace llmctl
