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

/// Waking a sleeping worker costs the caller a few microseconds, in which it gets this much done by
/// itself. One that comes too late costs no more than that: nobody waits for it.
constexpr int64_t kWorthWaking = int64_t{128} << 10;

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
  // One word says which loop it is (its number, from bit 17), whether workers may still join it
  // (bit 16), and how many are in it. So a worker that the scheduler brings late finds the loop
  // closed and is waited for by nobody: on a busy machine that is the difference between a loop of
  // microseconds and one of milliseconds.
  static constexpr uint64_t kInside = 0xFFFF;
  static constexpr uint64_t kOpen = uint64_t{1} << 16;
  static constexpr int kNumberShift = 17;
  alignas(64) std::atomic<uint64_t> loop{0};
  alignas(64) std::atomic<int64_t> next{0};
  // Set by the caller while nobody is inside.
  alignas(64) int64_t count = 0;
  const std::function<void(int64_t)>* body = nullptr;

  std::atomic<bool> is_running{false}, stop{false};
  std::atomic<int> num_sleeping{0};
  bool may_spin = false;
  std::mutex mutex;  // guards `error`; held to sleep and to wake
  std::condition_variable work_ready, work_done;
  std::exception_ptr error;
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
      const auto ready = [&] {
        const uint64_t now = loop.load();
        return stop.load() || ((now & kOpen) != 0 && now >> kNumberShift != seen);
      };
      if (!(may_spin && spin_until(ready))) {
        std::unique_lock lock(mutex);
        // Counted before the last look at `loop`: see wake().
        num_sleeping.fetch_add(1);
        work_ready.wait(lock, ready);
        num_sleeping.fetch_sub(1);
      }
      if (stop.load()) return;
      uint64_t now = loop.load();
      if ((now & kOpen) == 0 || !loop.compare_exchange_strong(now, now + 1)) continue;
      seen = now >> kNumberShift;
      run_claimed();
      if ((loop.fetch_sub(1) & (kOpen | kInside)) == 1) {
        const std::lock_guard lock(mutex);
        work_done.notify_one();
      }
    }
  }

  /// Called after the loop was opened: a worker that this does not see asleep has yet to look at
  /// `loop`, and finds it open.
  void wake(int64_t wanted) {
    const int64_t sleeping = num_sleeping.load();
    if (sleeping == 0) return;
    { const std::lock_guard lock(mutex); }
    if (wanted >= sleeping) return work_ready.notify_all();
    for (int64_t i = 0; i < wanted; ++i) work_ready.notify_one();
  }

  void wait_until_all_left() {
    const auto done = [&] { return (loop.load() & kInside) == 0; };
    if (done() || (may_spin && spin_until(done))) return;
    std::unique_lock lock(mutex);
    work_done.wait(lock, done);
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

void ThreadPool::parallel_for(int64_t count, const std::function<void(int64_t)>& body,
                              int64_t work_bytes) {
  if (count <= 0) return;
  if (num_threads_ == 1 || count == 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  State& s = *state_;
  if (s.is_running.exchange(true)) {
    throw Error(ErrorCode::kInternal, "a thread pool runs one loop at a time");
  }
  s.count = count;
  s.body = &body;
  s.next.store(0);
  const uint64_t number = (s.loop.load() >> State::kNumberShift) + 1;
  s.loop.store(number << State::kNumberShift | State::kOpen);
  if (work_bytes >= kWorthWaking) s.wake(count - 1);
  s.run_claimed();
  s.loop.fetch_and(~State::kOpen);
  s.wait_until_all_left();
  std::exception_ptr error;
  {
    const std::lock_guard lock(s.mutex);
    error = std::exchange(s.error, nullptr);
  }
  s.is_running.store(false);
  if (error) std::rethrow_exception(error);
}

}  // namespace llmctl
