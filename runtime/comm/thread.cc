// Ranks that are threads of one process: collectives through shared pointers and barriers.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <mutex>

#include "formats/core/error.h"
#include "formats/core/thread_pool.h"
#include "runtime/comm/communicator.h"

namespace llmctl::runtime {
namespace {

/// Bridges the skew between ranks that do equal work; beyond it a waiter gives its core away.
constexpr auto kSpinTime = std::chrono::microseconds(30);

enum class Op : uint8_t { kBarrier, kAllGather, kAllReduce, kBroadcast };

/// What a rank brings to a collective. Written by its owner before the first barrier of the
/// collective, read by the others between the two barriers.
struct Slot {
  Op op = Op::kBarrier;
  void* data = nullptr;
  size_t bytes = 0;
};

/// One direction between two ranks. The sender lends its buffer until the receiver has copied it,
/// so that a message costs no allocation.
struct Channel {
  std::mutex mutex;  // guards `data`, `bytes` and the writes of `full`
  std::condition_variable changed;
  const void* data = nullptr;
  size_t bytes = 0;
  std::atomic<bool> full{false};
};

struct Group {
  explicit Group(int size_)
      : size(size_),
        may_spin(size_ <= available_cores()),
        slots(static_cast<size_t>(size_)),
        channels(static_cast<size_t>(size_) * static_cast<size_t>(size_)) {}

  const int size;
  const bool may_spin;
  std::vector<Slot> slots;
  std::vector<Channel> channels;  // [from * size + to]

  std::mutex mutex;  // guards `arrived`, `reason` and the writes of `generation`
  std::condition_variable released;
  int arrived = 0;
  std::string reason;
  std::atomic<uint64_t> generation{0};
  std::atomic<bool> aborted{false};

  [[noreturn]] void throw_aborted() {
    std::string text;
    {
      const std::lock_guard lock(mutex);
      text = reason;
    }
    throw Error(ErrorCode::kEnvironment, text);
  }

  /// Waits until `ready()`; spins a little first. `ready` must also hold once the group is aborted.
  template <typename Ready>
  void wait(std::unique_lock<std::mutex>& lock, std::condition_variable& condition,
            const Ready& ready) const {
    if (may_spin && !ready()) {
      lock.unlock();
      const auto end = std::chrono::steady_clock::now() + kSpinTime;
      while (!ready() && std::chrono::steady_clock::now() < end) {
      }
      lock.lock();
    }
    condition.wait(lock, ready);
  }

  /// Opens a collective: nobody passes until all have arrived. Either all ranks pass, or (after an
  /// abort) all throw.
  void barrier() {
    std::unique_lock lock(mutex);
    if (!aborted.load()) {
      if (arrive()) return;
      const uint64_t mine = generation.load();
      wait(lock, released, [&] { return generation.load() != mine || aborted.load(); });
      if (generation.load() != mine) return;
    }
    lock.unlock();
    throw_aborted();
  }

  /// Closes a collective. Deaf to aborts: a rank that left early could free a buffer that others
  /// are still copying from, and all who came in are only copies away from this line.
  void leave() {
    std::unique_lock lock(mutex);
    if (arrive()) return;
    const uint64_t mine = generation.load();
    wait(lock, released, [&] { return generation.load() != mine; });
  }

  /// Whether this was the last rank to arrive, which releases the others. Requires `mutex`.
  bool arrive() {
    if (++arrived < size) return false;
    arrived = 0;
    generation.fetch_add(1);
    released.notify_all();
    return true;
  }

  void abort(const std::string& why) {
    {
      const std::lock_guard lock(mutex);
      if (aborted.load()) return;
      reason = why;
      aborted.store(true);
    }
    released.notify_all();
    for (Channel& channel : channels) {
      // The lock orders the flag before a waiter's last look at it.
      { const std::lock_guard lock(channel.mutex); }
      channel.changed.notify_all();
    }
  }
};

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(std::shared_ptr<Group> group, int rank)
      : group_(std::move(group)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return group_->size; }

  void barrier() override {
    enter(Op::kBarrier, nullptr, 0);
    group_->leave();
  }

  void all_gather(void* recv, const void* send, size_t bytes_per_rank) override {
    enter(Op::kAllGather, const_cast<void*>(send), bytes_per_rank);
    auto* out = static_cast<std::byte*>(recv);
    for (int r = 0; r < group_->size; ++r, out += bytes_per_rank) {
      const void* from = slot(r).data;
      if (from != out && bytes_per_rank > 0) std::memcpy(out, from, bytes_per_rank);
    }
    group_->leave();
  }

  void all_reduce_sum(float* data, size_t count) override {
    enter(Op::kAllReduce, data, count * sizeof(float));
    // Each rank sums one range and writes it to all, so nobody reads what another has overwritten.
    const auto size = static_cast<size_t>(group_->size);
    const auto me = static_cast<size_t>(rank_);
    const size_t begin = count / size * me + std::min(me, count % size);
    const size_t end = begin + count / size + (me < count % size ? 1 : 0);
    for (size_t i = begin; i < end; ++i) {
      float sum = static_cast<float*>(slot(0).data)[i];
      for (int r = 1; r < group_->size; ++r) sum += static_cast<float*>(slot(r).data)[i];
      for (int r = 0; r < group_->size; ++r) static_cast<float*>(slot(r).data)[i] = sum;
    }
    group_->leave();
  }

  void broadcast(void* data, size_t bytes, int root) override {
    check_rank(root);
    enter(Op::kBroadcast, data, bytes);
    if (rank_ != root && bytes > 0) std::memcpy(data, slot(root).data, bytes);
    group_->leave();
  }

  void send(const void* data, size_t bytes, int to) override {
    check_rank(to);
    Channel& channel = this->channel(rank_, to);
    std::unique_lock lock(channel.mutex);
    throw_if_aborted(lock);
    channel.data = data;
    channel.bytes = bytes;
    channel.full.store(true);
    channel.changed.notify_all();
    group_->wait(lock, channel.changed,
                 [&] { return !channel.full.load() || group_->aborted.load(); });
    if (channel.full.load()) throw_if_aborted(lock);
  }

  void recv(void* data, size_t bytes, int from) override {
    check_rank(from);
    Channel& channel = this->channel(from, rank_);
    std::unique_lock lock(channel.mutex);
    group_->wait(lock, channel.changed,
                 [&] { return channel.full.load() || group_->aborted.load(); });
    throw_if_aborted(lock);
    if (channel.bytes != bytes) {
      throw Error(ErrorCode::kInternal, "rank " + std::to_string(rank_) + " expects " +
                                            std::to_string(bytes) + " bytes from rank " +
                                            std::to_string(from) + ", which sends " +
                                            std::to_string(channel.bytes));
    }
    if (bytes > 0) std::memcpy(data, channel.data, bytes);
    channel.full.store(false);
    channel.changed.notify_all();
  }

  void abort(const std::string& reason) override { group_->abort(reason); }

 private:
  Slot& slot(int rank) { return group_->slots[static_cast<size_t>(rank)]; }
  Channel& channel(int from, int to) {
    return group_->channels[static_cast<size_t>(from) * static_cast<size_t>(group_->size) +
                            static_cast<size_t>(to)];
  }

  void check_rank(int rank) const {
    if (rank < 0 || rank >= group_->size) {
      throw Error(ErrorCode::kInternal, "no rank " + std::to_string(rank) + " in a group of " +
                                            std::to_string(group_->size));
    }
  }

  void throw_if_aborted(std::unique_lock<std::mutex>& lock) {
    if (!group_->aborted.load()) return;
    lock.unlock();
    group_->throw_aborted();
  }

  /// Publishes this rank's part and waits for the others'. Every rank sees the same slots, so a
  /// mismatch is an error on all of them and nobody is left waiting.
  void enter(Op op, void* data, size_t bytes) {
    slot(rank_) = {op, data, bytes};
    group_->barrier();
    for (const Slot& other : group_->slots) {
      if (other.op != op || other.bytes != bytes) {
        throw Error(ErrorCode::kInternal, "ranks entered different collectives");
      }
    }
  }

  std::shared_ptr<Group> group_;
  int rank_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_thread_communicators(int size) {
  if (size < 1) throw Error(ErrorCode::kInternal, "a group needs at least one rank");
  const auto group = std::make_shared<Group>(size);
  std::vector<std::unique_ptr<Communicator>> result;
  for (int rank = 0; rank < size; ++rank) {
    result.push_back(std::make_unique<ThreadCommunicator>(group, rank));
  }
  return result;
}

}  // namespace llmctl::runtime
