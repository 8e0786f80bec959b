#include "runtime/comm/process_ranks.h"

#include <doctest/doctest.h>

#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "formats/core/error.h"
#include "runtime/comm/communicator.h"
#include "runtime/decoder.h"

using namespace llmctl;
using namespace llmctl::runtime;

namespace {

/// Messages between threads that stand for processes.
struct PostOffice {
  std::mutex mutex;  // guards boxes
  std::condition_variable posted;
  std::map<std::tuple<int, int, int>, std::deque<std::string>> boxes;  // from, to, channel
};

class ThreadLink final : public ProcessLink {
 public:
  ThreadLink(PostOffice& office, int rank, int size) : office_(office), rank_(rank), size_(size) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int local_size() const override { return size_; }
  std::string name_of(int rank) const override { return "rank " + std::to_string(rank); }
  std::vector<std::string> gather(const std::string&) override { return {}; }
  std::string broadcast(const std::string& bytes) override { return bytes; }
  void add_progress(uint64_t) override {}
  void listen_to_progress(std::function<void(uint64_t)>) override {}
  std::exception_ptr fail(std::exception_ptr error) noexcept override { return error; }

  void exchange(std::span<const Sent> sent, std::span<const Received> received) override {
    std::unique_lock lock(office_.mutex);
    for (const Sent& m : sent) {
      office_.boxes[{rank_, m.to, m.channel}].emplace_back(static_cast<const char*>(m.data),
                                                           m.bytes);
    }
    office_.posted.notify_all();
    for (const Received& m : received) {
      auto& box = office_.boxes[{m.from, rank_, m.channel}];
      office_.posted.wait(lock, [&] { return !box.empty(); });
      REQUIRE(box.front().size() == m.bytes);
      if (m.bytes > 0) std::memcpy(m.data, box.front().data(), m.bytes);
      box.pop_front();
    }
  }

 private:
  PostOffice& office_;
  int rank_, size_;
};

/// Runs `body` on every rank of the grid and returns what it returned, by rank.
std::vector<std::string> on_grid(int tp, int pp,
                                 const std::function<std::string(int, const RankComm&)>& body) {
  PostOffice office;
  std::vector<std::string> results(static_cast<size_t>(tp * pp));
  std::vector<std::thread> threads;
  for (int r = 0; r < tp * pp; ++r) {
    threads.emplace_back([&, r] {
      ThreadLink link(office, r, tp * pp);
      const auto ranks = make_process_ranks(link, tp, pp);
      ranks->run([&](int rank, const RankComm& comm) {
        results[static_cast<size_t>(r)] = ranks->local_ranks() == std::vector{rank} && rank == r
                                              ? body(rank, comm)
                                              : "another rank's body";
      });
    });
  }
  for (std::thread& thread : threads) thread.join();
  return results;
}

}  // namespace

TEST_CASE("process ranks: a stage gathers among its own ranks and the world among all") {
  for (const auto& [tp, pp] : {std::pair{1, 1}, {2, 1}, {1, 3}, {2, 2}, {3, 2}}) {
    CAPTURE(tp);
    CAPTURE(pp);
    const auto results = on_grid(tp, pp, [](int rank, const RankComm& comm) {
      std::string stage(static_cast<size_t>(comm.tp->size()), '?');
      std::string world(static_cast<size_t>(comm.world->size()), '?');
      for (int round = 0; round < 20; ++round) {
        const char mine = static_cast<char>('a' + rank);
        comm.tp->all_gather(stage.data(), &mine, 1);
        comm.world->all_gather(world.data(), &mine, 1);
        comm.world->barrier();
      }
      return stage + "/" + world + "/" + std::to_string(comm.tp->rank());
    });
    const std::string all = std::string("abcdefgh").substr(0, static_cast<size_t>(tp * pp));
    for (int r = 0; r < tp * pp; ++r) {
      const auto first = static_cast<size_t>(r / tp * tp);
      CHECK(results[static_cast<size_t>(r)] ==
            all.substr(first, static_cast<size_t>(tp)) + "/" + all + "/" + std::to_string(r % tp));
    }
  }
}

TEST_CASE("process ranks: gathering in place and sums in rank order") {
  const auto results = on_grid(3, 1, [](int rank, const RankComm& comm) {
    std::vector<int> all(6, -1);
    all[static_cast<size_t>(rank) * 2] = rank;
    all[static_cast<size_t>(rank) * 2 + 1] = rank + 100;
    comm.tp->all_gather(all.data(), &all[static_cast<size_t>(rank) * 2], 2 * sizeof(int));
    // In any other order the small terms would be lost, or not.
    float sum = rank == 0 ? 1e8F : rank == 1 ? 3.0F : 5.0F;
    comm.world->all_reduce_sum(&sum, 1);
    return std::to_string(all == std::vector{0, 100, 1, 101, 2, 102}) + " " + std::to_string(sum);
  });
  const float expected = (1e8F + 3.0F) + 5.0F;
  for (const std::string& result : results) CHECK(result == "1 " + std::to_string(expected));
}

TEST_CASE("process ranks: broadcasts from any root and messages in order") {
  const auto results = on_grid(1, 3, [](int rank, const RankComm& comm) {
    std::string seen;
    for (int root = 0; root < 3; ++root) {
      int value = rank == root ? 40 + root : 0;
      comm.world->broadcast(&value, sizeof value, root);
      seen += std::to_string(value) + " ";
    }
    for (int i = 0; i < 100; ++i) {
      int value = i;
      if (rank > 0) comm.world->recv(&value, sizeof value, rank - 1);
      if (rank < 2) comm.world->send(&value, sizeof value, rank + 1);
      if (value != i) seen += "out of order";
    }
    comm.world->broadcast(nullptr, 0, 1);
    return seen;
  });
  for (const std::string& result : results) CHECK(result == "40 41 42 ");
}

TEST_CASE("process ranks: another number of processes than ranks is refused") {
  PostOffice office;
  ThreadLink link(office, 0, 3);
  CHECK_THROWS_AS(make_process_ranks(link, 2, 2), Error);
  const auto ranks = make_process_ranks(link, 3, 1);
  ranks->run([](int, const RankComm& comm) {
    CHECK_THROWS_AS(comm.world->send(nullptr, 0, 3), Error);
    CHECK_THROWS_AS(comm.world->broadcast(nullptr, 0, -1), Error);
  });
}
