#include "runtime/comm/communicator.h"

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <functional>
#include <thread>

#include "formats/core/error.h"

using namespace llmctl;
using runtime::Communicator;

namespace {

/// Runs `body(communicator)` on every rank; an exception aborts the group. Returns the messages.
std::vector<std::string> run_ranks(int size, const std::function<void(Communicator&)>& body) {
  auto comms = runtime::make_thread_communicators(size);
  std::vector<std::string> errors(static_cast<size_t>(size));
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r) {
    threads.emplace_back([&, r] {
      Communicator& comm = *comms[static_cast<size_t>(r)];
      try {
        body(comm);
      } catch (const std::exception& e) {
        errors[static_cast<size_t>(r)] = e.what();
        comm.abort("rank " + std::to_string(r) + " failed: " + e.what());
      }
    });
  }
  for (auto& t : threads) t.join();
  return errors;
}

void check_no_errors(const std::vector<std::string>& errors) {
  for (const auto& e : errors) CHECK(e == "");
}

}  // namespace

TEST_CASE("comm: all_gather puts every rank's bytes side by side in rank order") {
  for (const int size : {1, 2, 3, 8}) {
    CAPTURE(size);
    std::vector<std::vector<int>> got(static_cast<size_t>(size));
    check_no_errors(run_ranks(size, [&](Communicator& comm) {
      const std::vector<int> mine = {comm.rank() * 10, comm.rank() * 10 + 1, -comm.rank()};
      std::vector<int> all(3 * static_cast<size_t>(size));
      comm.all_gather(all.data(), mine.data(), 3 * sizeof(int));
      got[static_cast<size_t>(comm.rank())] = all;
    }));
    std::vector<int> want;
    for (int r = 0; r < size; ++r) want.insert(want.end(), {r * 10, r * 10 + 1, -r});
    for (const auto& g : got) CHECK(g == want);
  }
}

TEST_CASE("comm: all_gather works in place") {
  check_no_errors(run_ranks(4, [&](Communicator& comm) {
    std::vector<int> all(8, -1);
    int* mine = &all[static_cast<size_t>(comm.rank()) * 2];
    mine[0] = comm.rank();
    mine[1] = comm.rank() + 100;
    comm.all_gather(all.data(), mine, 2 * sizeof(int));
    if (all != std::vector<int>{0, 100, 1, 101, 2, 102, 3, 103}) throw std::runtime_error("bad");
  }));
}

TEST_CASE("comm: all_reduce_sum adds in rank order and gives every rank the same bits") {
  for (const int size : {1, 2, 3, 7}) {
    for (const size_t count : {size_t{0}, size_t{1}, size_t{5}, size_t{1000}}) {
      CAPTURE(size);
      CAPTURE(count);
      const auto value = [](int rank, size_t i) {
        return std::ldexp(1.0F, (rank * 13 + static_cast<int>(i) * 7) % 41 - 20) +
               static_cast<float>(rank);
      };
      std::vector<std::vector<float>> got(static_cast<size_t>(size));
      check_no_errors(run_ranks(size, [&](Communicator& comm) {
        std::vector<float> data(count);
        for (size_t i = 0; i < count; ++i) data[i] = value(comm.rank(), i);
        comm.all_reduce_sum(data.data(), count);
        got[static_cast<size_t>(comm.rank())] = data;
      }));
      for (size_t i = 0; i < count; ++i) {
        float want = value(0, i);
        for (int r = 1; r < size; ++r) want += value(r, i);
        for (const auto& g : got) REQUIRE(g[i] == want);
      }
    }
  }
}

TEST_CASE("comm: broadcast copies the root's bytes to all") {
  for (int root = 0; root < 3; ++root) {
    check_no_errors(run_ranks(3, [&](Communicator& comm) {
      int value = comm.rank() == root ? 42 + root : 0;
      comm.broadcast(&value, sizeof value, root);
      if (value != 42 + root) throw std::runtime_error("not broadcast");
    }));
  }
}

TEST_CASE("comm: messages of a pair arrive in order") {
  check_no_errors(run_ranks(2, [](Communicator& comm) {
    for (int i = 0; i < 500; ++i) {
      int value = i;
      if (comm.rank() == 0) {
        comm.send(&value, sizeof value, 1);
        comm.recv(&value, sizeof value, 1);
        if (value != -i) throw std::runtime_error("answer out of order");
      } else {
        comm.recv(&value, sizeof value, 0);
        if (value != i) throw std::runtime_error("message out of order");
        value = -value;
        comm.send(&value, sizeof value, 0);
      }
    }
  }));
}

TEST_CASE("comm: a ring of sends passes through every rank") {
  check_no_errors(run_ranks(5, [](Communicator& comm) {
    for (int round = 0; round < 100; ++round) {
      int token = round;
      const int next = (comm.rank() + 1) % 5;
      const int previous = (comm.rank() + 4) % 5;
      if (comm.rank() == 0) {
        comm.send(&token, sizeof token, next);
        comm.recv(&token, sizeof token, previous);
        if (token != round + 4) throw std::runtime_error("token lost");
      } else {
        comm.recv(&token, sizeof token, previous);
        ++token;
        comm.send(&token, sizeof token, next);
      }
    }
  }));
}

TEST_CASE("comm: a thousand mixed collectives keep all ranks in step") {
  check_no_errors(run_ranks(6, [](Communicator& comm) {
    std::vector<int> all(6);
    for (int i = 0; i < 1000; ++i) {
      const int mine = comm.rank() * 1000 + i;
      comm.all_gather(all.data(), &mine, sizeof mine);
      for (int r = 0; r < 6; ++r) {
        if (all[static_cast<size_t>(r)] != r * 1000 + i) throw std::runtime_error("stale gather");
      }
      float one = 1.0F;
      comm.all_reduce_sum(&one, 1);
      if (one != 6.0F) throw std::runtime_error("stale sum");
      int root = comm.rank();
      comm.broadcast(&root, sizeof root, i % 6);
      if (root != i % 6) throw std::runtime_error("stale broadcast");
      if (i % 50 == 0) comm.barrier();
    }
  }));
}

TEST_CASE("comm: abort wakes ranks that wait in any call with the first reason") {
  std::atomic<int> waiting{0};
  const auto errors = run_ranks(5, [&](Communicator& comm) {
    char byte = 0;
    switch (comm.rank()) {
      case 0:
        while (waiting.load() < 4) std::this_thread::yield();
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
        comm.abort("rank 0: the disk is on fire");
        comm.abort("a later reason");
        break;
      case 1:
        ++waiting;
        comm.barrier();
        break;
      case 2:
        ++waiting;
        comm.all_gather(&byte, &byte, 1);
        break;
      case 3:
        ++waiting;
        comm.recv(&byte, 1, 4);
        break;
      default:
        ++waiting;
        comm.send(&byte, 1, 0);
    }
  });
  CHECK(errors[0] == "");
  for (size_t r = 1; r < 5; ++r) CHECK(errors[r] == "rank 0: the disk is on fire");
}

TEST_CASE("comm: every call after an abort throws at once") {
  auto comms = runtime::make_thread_communicators(2);
  comms[1]->abort("stop");
  char byte = 0;
  CHECK_THROWS_WITH_AS(comms[0]->barrier(), "stop", Error);
  CHECK_THROWS_WITH_AS(comms[0]->send(&byte, 1, 1), "stop", Error);
  CHECK_THROWS_WITH_AS(comms[0]->recv(&byte, 1, 1), "stop", Error);
  CHECK_THROWS_WITH_AS(comms[1]->broadcast(&byte, 1, 0), "stop", Error);
}

TEST_CASE("comm: ranks that enter different collectives are told so") {
  const auto errors = run_ranks(2, [](Communicator& comm) {
    std::vector<float> data(4);
    if (comm.rank() == 0) {
      comm.all_reduce_sum(data.data(), 2);
    } else {
      comm.all_reduce_sum(data.data(), 4);
    }
  });
  CHECK(errors[0].find("different collectives") != std::string::npos);
}
