#include "formats/core/thread_pool.h"

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "formats/core/error.h"

namespace llmctl {
namespace {

TEST_CASE("thread pool: runs every index once whatever the numbers") {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    CHECK(pool.num_threads() == threads);
    for (const int64_t count : {0, 1, 2, 7, 64, 1000}) {
      CAPTURE(threads);
      CAPTURE(count);
      std::vector<std::atomic<int>> calls(static_cast<size_t>(count));
      pool.parallel_for(count, [&](int64_t i) { ++calls[static_cast<size_t>(i)]; });
      for (const auto& call : calls) CHECK(call.load() == 1);
    }
    pool.parallel_for(-5, [](int64_t) { FAIL("called"); });
  }
}

TEST_CASE("thread pool: less than one thread is one") {
  CHECK(ThreadPool(0).num_threads() == 1);
  CHECK(ThreadPool(-3).num_threads() == 1);
}

TEST_CASE("thread pool: results of one loop are seen by the next") {
  ThreadPool pool(4);
  std::vector<int64_t> values(64, 0);
  for (int round = 0; round < 20000; ++round) {
    pool.parallel_for(64, [&](int64_t i) { values[static_cast<size_t>(i)] += i; });
  }
  int64_t total = 0;
  for (const int64_t value : values) total += value;
  CHECK(total == int64_t{20000} * 63 * 64 / 2);
}

TEST_CASE("thread pool: waits that sleep wake up again") {
  ThreadPool pool(3);
  std::atomic<int> calls{0};
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    pool.parallel_for(3, [&](int64_t i) {
      if (i == round % 3) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      ++calls;
    });
  }
  CHECK(calls.load() == 60);
}

TEST_CASE("thread pool: the first exception reaches the caller and cancels the rest") {
  for (const int threads : {1, 2, 4}) {
    CAPTURE(threads);
    ThreadPool pool(threads);
    for (int round = 0; round < 200; ++round) {
      std::atomic<int64_t> calls{0};
      try {
        pool.parallel_for(1'000'000, [&](int64_t i) {
          ++calls;
          if (i == 10) throw std::runtime_error("ten");
        });
        FAIL_CHECK("no exception");
      } catch (const std::runtime_error& e) {
        CHECK(std::string(e.what()) == "ten");
      }
      CHECK(calls.load() < 1'000'000);
      // The pool is as good as before.
      std::atomic<int64_t> sum{0};
      pool.parallel_for(100, [&](int64_t i) { sum += i; });
      CHECK(sum.load() == 4950);
    }
    CHECK_THROWS_AS(pool.parallel_for(100, [](int64_t) { throw std::string("each"); }),
                    std::string);
  }
}

TEST_CASE("thread pool: a loop inside a loop is our own mistake and says so") {
  ThreadPool pool(2);
  try {
    pool.parallel_for(4, [&](int64_t) { pool.parallel_for(4, [](int64_t) {}); });
    FAIL_CHECK("accepted");
  } catch (const Error& e) {
    CHECK(e.code() == ErrorCode::kInternal);
  }
  std::atomic<int> calls{0};
  pool.parallel_for(4, [&](int64_t) { ++calls; });
  CHECK(calls.load() == 4);
}

TEST_CASE("thread pool: many pools start and stop") {
  for (int round = 0; round < 100; ++round) {
    ThreadPool pool(4);
    if (round % 2 == 0) pool.parallel_for(8, [](int64_t) {});
  }
}

TEST_CASE("thread pool: there is at least one core") { CHECK(available_cores() >= 1); }

}  // namespace
}  // namespace llmctl
