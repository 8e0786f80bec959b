#include "tests/cuda_emulation/block.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "tests/cuda_emulation/fiber.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// The linker's names for the ends of the section that __shared__ variables are in.
extern "C" {
extern char __start_llmctl_cuda_shared[] __attribute__((weak));
extern char __stop_llmctl_cuda_shared[] __attribute__((weak));
}

namespace llmctl::cuda_emulation {
namespace {

enum class State { kReady, kAtBlockBarrier, kInWarp, kEnded };

/// An asynchronous copy that has not been done.
struct PendingCopy {
  void* to;
  const void* from;  ///< null: zeros
  int group;
};

struct Thread {
  Fiber fiber;
  std::vector<PendingCopy> copies;
  int group = 0;
  uint3 index{};
  int number = 0;  ///< in its block
  State state = State::kEnded;
};

/// A warp's collective operations. Two sets of slots: a lane cannot come to the operation after the
/// next before all have read what this one left.
struct Warp {
  WarpSlots slots[2];
  int turn = 0;
  unsigned arrived = 0, mask = 0;
  const char* operation = nullptr;
};

struct Machine {
  std::vector<std::unique_ptr<Thread>> threads;  // kept for the next launch
  std::vector<Warp> warps;
  int num_threads = 0, live = 0, at_barrier = 0;
  Thread* running = nullptr;
  bool backwards = false;
  const Launch* launch = nullptr;
  std::unique_ptr<unsigned char[]> shared;
  std::string error;
};

Machine& machine() {
  static Machine instance;
  return instance;
}

void release_block(Machine& m) {
  for (int i = 0; i < m.num_threads; ++i) {
    Thread& t = *m.threads[static_cast<size_t>(i)];
    if (t.state == State::kAtBlockBarrier) t.state = State::kReady;
  }
  m.at_barrier = 0;
}

/// Lets other threads run until this one is ready again. The neighbour in the warp goes on without
/// a detour, because lanes mostly wait for each other.
void wait(State state) {
  Machine& m = machine();
  Thread& self = *m.running;
  self.state = state;
  const int next = self.number + (m.backwards ? -1 : 1);
  if (next / 32 == self.number / 32 && next >= 0 && next < m.num_threads) {
    Thread& other = *m.threads[static_cast<size_t>(next)];
    if (other.state == State::kReady) {
      m.running = &other;
      threadIdx = other.index;
      return self.fiber.pass_to(other.fiber);
    }
  }
  self.fiber.leave();
}

void thread_main() {
  Machine& m = machine();
  m.running->fiber.begin();
  m.launch->body();
  --m.live;
  if (m.live > 0 && m.at_barrier == m.live) release_block(m);
  wait(State::kEnded);
  std::abort();  // an ended fiber is not entered
}

/// Of static shared memory.
void poison_shared() {
  std::memset(__start_llmctl_cuda_shared, 0xff,
              static_cast<size_t>(__stop_llmctl_cuda_shared - __start_llmctl_cuda_shared));
}

void enter(Machine& m, Thread& t) {
  m.running = &t;
  threadIdx = t.index;
  t.fiber.enter();
}

/// Lets `t` and the other lanes of its warp run until all wait for other warps.
bool run_warp(Machine& m, int warp, bool backwards) {
  const int first = warp * 32, count = std::min(32, m.num_threads - first);
  bool ran = false;
  for (bool again = true; again;) {
    again = false;
    for (int i = 0; i < count; ++i) {
      const int lane = backwards ? count - 1 - i : i;
      Thread& t = *m.threads[static_cast<size_t>(first + lane)];
      if (t.state != State::kReady) continue;
      enter(m, t);
      if (!m.error.empty()) return true;
      ran = again = true;
    }
  }
  return ran;
}

void run_block(Machine& m, bool backwards) {
  poison_shared();
  std::fill_n(m.shared.get(), m.launch->shared_bytes, static_cast<unsigned char>(0xff));
  const int num_warps = (m.num_threads + 31) / 32;
  m.warps.assign(static_cast<size_t>(num_warps), {});
  m.live = m.num_threads;
  m.at_barrier = 0;
  for (int i = 0; i < m.num_threads; ++i) {
    Thread& t = *m.threads[static_cast<size_t>(i)];
    t.number = i;
    t.index = {static_cast<unsigned>(i) % blockDim.x,
               static_cast<unsigned>(i) / blockDim.x % blockDim.y,
               static_cast<unsigned>(i) / (blockDim.x * blockDim.y)};
    t.state = State::kReady;
    t.copies.clear();
    t.group = 0;
    t.fiber.start(thread_main);
  }
  while (m.live > 0) {
    bool ran = false;
    for (int w = 0; w < num_warps; ++w) {
      ran |= run_warp(m, backwards ? num_warps - 1 - w : w, backwards);
      if (!m.error.empty()) return;
    }
    if (!ran) {
      m.error = "threads wait for each other at different barriers";
      return;
    }
  }
}

}  // namespace

void fail(const char* what) {
  Machine& m = machine();
  m.error = what;
  m.running->fiber.leave();
  std::abort();  // nobody enters it again
}

int lane_id() { return machine().running->number % 32; }

void* dynamic_shared_memory() { return machine().shared.get(); }

void sync_block() {
  Machine& m = machine();
  if (++m.at_barrier == m.live) return release_block(m);
  wait(State::kAtBlockBarrier);
}

void copy_async_16(void* to, const void* from, bool inside) {
  Thread& self = *machine().running;
  self.copies.push_back({to, inside ? from : nullptr, self.group});
}

void commit_async() { ++machine().running->group; }

void wait_async(int groups_left) {
  Thread& self = *machine().running;
  const auto done = [&](const PendingCopy& copy) { return copy.group < self.group - groups_left; };
  for (const PendingCopy& copy : self.copies) {
    if (!done(copy)) continue;
    if (copy.from != nullptr) {
      std::memcpy(copy.to, copy.from, 16);
    } else {
      std::memset(copy.to, 0, 16);
    }
  }
  std::erase_if(self.copies, done);
}

const WarpSlots& exchange(const char* operation, unsigned mask, const void* value, size_t bytes,
                          void (*combine)(WarpSlots&)) {
  Machine& m = machine();
  const int number = m.running->number, lane = number % 32, first = number - lane;
  Warp& warp = m.warps[static_cast<size_t>(number / 32)];
  if (warp.arrived == 0) {
    warp.mask = mask;
    warp.operation = operation;
  } else if (warp.mask != mask ||
             (warp.operation != operation && std::strcmp(warp.operation, operation) != 0)) {
    fail("the lanes of a warp meet at different operations");
  }
  if ((mask >> lane & 1U) == 0) fail("a lane takes part that is not in the mask");
  WarpSlots& slots = warp.slots[warp.turn];
  if (bytes > 0) std::memcpy(slots.bytes[lane], value, bytes);
  warp.arrived |= 1U << lane;
  if (warp.arrived != mask) {
    wait(State::kInWarp);
    return slots;
  }
  if (combine != nullptr) combine(slots);
  warp.arrived = 0;
  warp.turn ^= 1;
  for (int i = 0; i < 32; ++i) {
    if ((mask >> i & 1U) == 0) continue;
    Thread& other = *m.threads[static_cast<size_t>(first + i)];
    if (other.state == State::kInWarp) other.state = State::kReady;
  }
  return slots;
}

std::optional<std::string> run_launch(const Launch& launch, bool backwards) {
  Machine& m = machine();
  const unsigned threads = launch.block.x * launch.block.y * launch.block.z;
  if (threads == 0 || threads > 1024) return "a block of " + std::to_string(threads) + " threads";
  if (launch.shared_bytes > 227 * 1024) return "more than 227 KiB of shared memory";
  while (m.threads.size() < threads) m.threads.push_back(std::make_unique<Thread>());
  m.num_threads = static_cast<int>(threads);
  m.launch = &launch;
  m.backwards = backwards;
  m.error.clear();
  m.shared = std::make_unique<unsigned char[]>(launch.shared_bytes);
  blockDim = launch.block;
  gridDim = launch.grid;
  const int64_t blocks = static_cast<int64_t>(launch.grid.x) * launch.grid.y * launch.grid.z;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t number = backwards ? blocks - 1 - i : i;
    blockIdx.x = static_cast<unsigned>(number % gridDim.x);
    blockIdx.y = static_cast<unsigned>(number / gridDim.x % gridDim.y);
    blockIdx.z = static_cast<unsigned>(number / gridDim.x / gridDim.y);
    run_block(m, backwards);
    if (m.error.empty()) continue;
    return m.error + " (block " + std::to_string(number) + ", thread " +
           std::to_string(m.running->number) + ")";
  }
  return std::nullopt;
}

}  // namespace llmctl::cuda_emulation
