#include "runtime/rank_group.h"

#include <exception>
#include <mutex>
#include <new>
#include <string>
#include <system_error>
#include <thread>

#include "formats/core/error.h"
#include "runtime/rank_model.h"

namespace llmctl::runtime {
namespace {

class ThreadRanks final : public RankGroup {
 public:
  ThreadRanks(int tp, int pp) : tp_(tp), pp_(pp) {
    for (int rank = 0; rank < tp * pp; ++rank) ranks_.push_back(rank);
  }

  int world_size() const override { return tp_ * pp_; }
  const std::vector<int>& local_ranks() const override { return ranks_; }

  void run(const std::function<void(int, const RankComm&)>& body) override {
    const int world = world_size();
    // Fresh communicators each time, so that an aborted call leaves nothing behind.
    auto world_comms = make_thread_communicators(world);
    std::vector<std::unique_ptr<Communicator>> tp_comms;
    for (int stage = 0; stage < pp_; ++stage) {
      for (auto& comm : make_thread_communicators(tp_)) tp_comms.push_back(std::move(comm));
    }
    const auto abort = [&](const std::string& reason) {
      for (auto& comm : world_comms) comm->abort(reason);
      for (auto& comm : tp_comms) comm->abort(reason);
    };
    std::mutex mutex;  // guards first_error
    std::exception_ptr first_error;
    const auto fail = [&](std::exception_ptr error, const std::string& reason) {
      {
        const std::lock_guard lock(mutex);
        if (!first_error) first_error = std::move(error);
      }
      abort(reason);
    };
    const auto run_one = [&](int rank) {
      const auto i = static_cast<size_t>(rank);
      const std::string name = "rank " + std::to_string(rank);
      try {
        body(rank, RankComm{world_comms[i].get(), tp_comms[i].get()});
      } catch (Error& error) {
        const bool named = world > 1 && error.code() != ErrorCode::kUsage &&
                           error.code() != ErrorCode::kInterrupted;
        if (named) error.add_context(name);
        fail(std::make_exception_ptr(error), error.what());
      } catch (const std::bad_alloc&) {
        const std::string message = name + ": out of memory";
        fail(std::make_exception_ptr(Error(ErrorCode::kEnvironment, message)), message);
      } catch (...) {  // a callback's own exception
        fail(std::current_exception(), name + " failed");
      }
    };
    std::vector<std::thread> threads;
    try {
      for (int rank = 1; rank < world; ++rank) threads.emplace_back(run_one, rank);
    } catch (const std::system_error& error) {
      abort(error.what());
      for (auto& thread : threads) thread.join();
      throw Error(ErrorCode::kEnvironment, std::string("cannot start a thread: ") + error.what());
    }
    run_one(0);
    for (auto& thread : threads) thread.join();
    if (first_error) std::rethrow_exception(first_error);
  }

 private:
  int tp_, pp_;
  std::vector<int> ranks_;
};

}  // namespace

std::unique_ptr<RankGroup> make_thread_ranks(int tp, int pp) {
  return std::make_unique<ThreadRanks>(tp, pp);
}

}  // namespace llmctl::runtime
