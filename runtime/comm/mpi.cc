// A process group over MPI: small messages between rank 0 and the others, and news of a failure
// that reach every rank while it works.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <list>
#include <map>
#include <mutex>
#include <new>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "formats/core/cancel.h"
#include "formats/core/error.h"
#include "formats/core/message.h"
#include "runtime/comm/launcher.h"
#include "runtime/comm/mpi_library.h"

namespace llmctl::runtime {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

/// What a message is; its MPI tag.
enum Tag : int {
  kData = 1,  ///< of a collective call
  kProgress,  ///< to rank 0: bytes done since the last
  kFailed,    ///< to rank 0: this ended me
  kStop,      ///< from rank 0: this ended the job
  kStopped,   ///< to rank 0: I have stopped writing
  kEnd,       ///< from rank 0: all have
};

/// How often the thread that listens while others work looks.
constexpr milliseconds kListenEvery{20};
constexpr milliseconds kProgressEvery{200};
/// How long a failed job waits for ranks that do not answer.
constexpr milliseconds kPatience{20000};

Error as_error(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& e) {
    return e;
  } catch (const std::bad_alloc&) {
    return {ErrorCode::kEnvironment, "out of memory", "", "use fewer --jobs or free some memory"};
  } catch (const std::system_error& e) {
    return {ErrorCode::kEnvironment, e.what()};
  } catch (const std::exception& e) {
    return {ErrorCode::kInternal, e.what()};
  } catch (...) {
    return {ErrorCode::kInternal, "unknown exception"};
  }
}

std::string pack(const Error& error) {
  MessageWriter message;
  message.number(static_cast<uint64_t>(error.code()));
  for (const std::string* part : {&error.message(), &error.where(), &error.hint()}) {
    message.text(*part);
  }
  return message.bytes();
}

Error unpack(std::string_view bytes) {
  MessageReader message(bytes);
  const auto code = static_cast<ErrorCode>(message.number());
  const std::string what(message.text()), where(message.text()), hint(message.text());
  return {code, what, where, hint};
}

std::string host_name() {
  char name[256] = "";
  ::gethostname(name, sizeof name - 1);
  return name;
}

/// All calls of MPI are made with the mutex held, by whichever thread, and none of them waits; so
/// MPI_THREAD_SERIALIZED is enough, and news of a failure are read whatever one waits for.
class MpiGroup : public ProcessLink {
 public:
  /// `bulk`: a communicator of the same ranks, for exchange.
  MpiGroup(MpiLibrary mpi, MPI_Comm bulk, int rank, int size)
      : mpi_(std::move(mpi)),
        bulk_(bulk),
        rank_(rank),
        size_(size),
        inbox_(static_cast<size_t>(size)) {
    listener_ = std::thread([this] { listen(); });
    try {
      hosts_ = all_gather(*this, host_name());
    } catch (...) {
      // Whoever has the group can tell the others; the first call throws it.
      start_error_ = std::current_exception();
    }
  }

  ~MpiGroup() override {
    stop_listening();
    const std::lock_guard lock(mutex_);
    // Who waits for a rank that does not answer would wait in MPI_Finalize for ever.
    if (is_broken_ || !drain()) {
      const int status = failure_ && failure_->code() == ErrorCode::kInterrupted ? 130 : 4;
      mpi_.abort(mpi_.world, status);
    }
    mpi_.finalize();
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int local_size() const override {
    if (hosts_.empty()) return 1;
    return static_cast<int>(
        std::count(hosts_.begin(), hosts_.end(), hosts_[static_cast<size_t>(rank_)]));
  }
  std::string name_of(int rank) const override {
    const auto index = static_cast<size_t>(rank);
    return "rank " + std::to_string(rank) +
           (index < hosts_.size() ? " (" + hosts_[index] + ")" : "");
  }

  std::vector<std::string> gather(const std::string& bytes) override {
    if (rank_ != 0) {
      flush_progress(true);
      post(0, kData, bytes);
      return {};
    }
    std::vector<std::string> parts = {bytes};
    throw_if_stopped();
    for (int from = 1; from < size_; ++from) parts.push_back(next_from(from));
    return parts;
  }

  std::string broadcast(const std::string& bytes) override {
    if (rank_ != 0) return next_from(0);
    throw_if_stopped();
    for (int to = 1; to < size_; ++to) post(to, kData, bytes);
    return bytes;
  }

  /// Through memory that stays with the group, so that what is under way when the group fails has
  /// somewhere to go to.
  void exchange(std::span<const Sent> sent, std::span<const Received> received) override {
    throw_if_stopped();
    size_t bytes = 0;
    for (const Sent& message : sent) bytes += message.bytes;
    for (const Received& message : received) bytes += message.bytes;
    if (bulk_memory_.size() < bytes) bulk_memory_.resize(bytes);
    requests_.resize(sent.size() + received.size());
    statuses_.resize(requests_.size());
    std::byte* at = bulk_memory_.data();
    {
      const std::lock_guard lock(mutex_);
      size_t i = 0;
      for (const Received& message : received) {
        mpi_.check(mpi_.irecv(at, count_of(message.bytes), mpi_.byte, message.from, message.channel,
                              bulk_, &requests_[i++]),
                   "MPI_Irecv");
        at += message.bytes;
      }
      // One buffer serves every rank that the same bytes go to.
      const void* last = nullptr;
      for (const Sent& message : sent) {
        if (message.data != last && message.bytes > 0) {
          std::memcpy(at, message.data, message.bytes);
          at += message.bytes;
        }
        last = message.data;
        mpi_.check(mpi_.isend(at - message.bytes, count_of(message.bytes), mpi_.byte, message.to,
                              message.channel, bulk_, &requests_[i++]),
                   "MPI_Isend");
      }
    }
    finish_exchange();
    at = bulk_memory_.data();
    for (size_t i = 0; i < received.size(); ++i) {
      int count = 0;
      mpi_.check(mpi_.get_count(&statuses_[i], mpi_.byte, &count), "MPI_Get_count");
      if (static_cast<size_t>(count) != received[i].bytes) {
        throw Error(ErrorCode::kInternal, "rank " + std::to_string(received[i].from) + " sends " +
                                              std::to_string(count) + " bytes, not " +
                                              std::to_string(received[i].bytes));
      }
      if (count > 0) std::memcpy(received[i].data, at, received[i].bytes);
      at += received[i].bytes;
    }
  }

  void add_progress(uint64_t bytes) override { done_bytes_ += bytes; }

  void listen_to_progress(std::function<void(uint64_t)> listener) override {
    const std::lock_guard lock(mutex_);
    on_progress_ = std::move(listener);
  }

  std::exception_ptr fail(std::exception_ptr error) noexcept override {
    try {
      return std::make_exception_ptr(agree(as_error(error)));
    } catch (...) {
      // Memory ended, or MPI did. The error at hand is the better one to tell.
      is_broken_ = true;
      return error;
    }
  }

 private:
  struct Sending {
    std::string bytes;
    MPI_Request request;
  };

  // Each of the following requires: mutex_ is held.

  void send(int to, Tag tag, std::string bytes) {
    Sending& sending = sending_.emplace_back(Sending{std::move(bytes), nullptr});
    mpi_.check(mpi_.isend(sending.bytes.data(), count_of(sending.bytes.size()), mpi_.byte, to, tag,
                          mpi_.world, &sending.request),
               "MPI_Isend");
  }

  /// Receives all that has come and lets go of what was sent.
  void pump() {
    for (;;) {
      int has_come = 0;
      MPI_Status status;
      mpi_.check(mpi_.iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, mpi_.world, &has_come, &status),
                 "MPI_Iprobe");
      if (!has_come) break;
      int count = 0;
      mpi_.check(mpi_.get_count(&status, mpi_.byte, &count), "MPI_Get_count");
      std::string bytes(static_cast<size_t>(count), '\0');
      mpi_.check(mpi_.recv(bytes.data(), count, mpi_.byte, status.MPI_SOURCE, status.MPI_TAG,
                           mpi_.world, MPI_STATUS_IGNORE),
                 "MPI_Recv");
      take(status.MPI_SOURCE, status.MPI_TAG, std::move(bytes));
    }
    for (auto it = sending_.begin(); it != sending_.end();) {
      int is_done = 0;
      mpi_.check(mpi_.test(&it->request, &is_done, MPI_STATUS_IGNORE), "MPI_Test");
      it = is_done ? sending_.erase(it) : std::next(it);
    }
  }

  void take(int from, int tag, std::string bytes) {
    switch (tag) {
      case kData:
        inbox_[static_cast<size_t>(from)].push_back(std::move(bytes));
        break;
      case kProgress:
        if (on_progress_) on_progress_(MessageReader(bytes).number());
        break;
      case kFailed:
        if (!failure_) stop_all(unpack(bytes));
        break;
      case kStop:
        failure_ = unpack(bytes);
        request_cancel();
        break;
      case kStopped:
        ++num_stopped_;
        break;
      case kEnd:
        has_ended_ = true;
        break;
    }
  }

  /// Rank 0: the job ends with this.
  void stop_all(Error error) {
    for (int to = 1; to < size_; ++to) send(to, kStop, pack(error));
    failure_ = std::move(error);
    request_cancel();
  }

  /// Whether all that was sent has gone out; waits a little.
  bool drain() {
    const auto end = Clock::now() + milliseconds(2000);
    try {
      for (pump(); !sending_.empty(); pump()) {
        if (Clock::now() > end) return false;
        std::this_thread::sleep_for(milliseconds(1));
      }
    } catch (...) {
      return false;
    }
    return true;
  }

  static int count_of(size_t bytes) {
    if (bytes > static_cast<size_t>(INT32_MAX)) {
      throw Error(ErrorCode::kInternal, "a message between processes is too long");
    }
    return static_cast<int>(bytes);
  }

  // These take it.

  /// Waits for requests_. The ranks of a model wait for each other hundreds of times for a token,
  /// so at first without sleeping; beyond that the core is another's.
  void finish_exchange() {
    const auto start = Clock::now();
    for (;;) {
      for (int i = 0; i < 20; ++i) {
        const std::lock_guard lock(mutex_);
        int is_done = 0;
        mpi_.check(mpi_.testall(static_cast<int>(requests_.size()), requests_.data(), &is_done,
                                statuses_.data()),
                   "MPI_Testall");
        if (is_done) return;
      }
      throw_if_stopped();
      if (Clock::now() - start < milliseconds(2)) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(50));
      }
    }
  }

  void post(int to, Tag tag, const std::string& bytes) {
    const std::lock_guard lock(mutex_);
    send(to, tag, bytes);
  }

  /// Looks again and again until `ready()`, which is asked with the mutex held.
  template <typename Ready>
  bool wait_until(Clock::time_point end, const Ready& ready) {
    for (int round = 0;; ++round) {
      {
        const std::lock_guard lock(mutex_);
        pump();
        if (ready()) return true;
      }
      if (Clock::now() > end) return false;
      if (round < 100) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(milliseconds(1));
      }
    }
  }

  std::string next_from(int from) {
    std::deque<std::string>& inbox = inbox_[static_cast<size_t>(from)];
    wait_until(Clock::time_point::max(),
               [&] { return !inbox.empty() || failure_ || cancel_requested(); });
    std::unique_lock lock(mutex_);
    // What was sent before the failure still counts: the sender is past the call.
    if (inbox.empty()) {
      lock.unlock();
      throw_if_stopped();
      lock.lock();
    }
    std::string bytes = std::move(inbox.front());
    inbox.pop_front();
    return bytes;
  }

  void throw_if_stopped() {
    if (start_error_) std::rethrow_exception(start_error_);
    {
      const std::lock_guard lock(mutex_);
      if (failure_) throw Error(*failure_);
    }
    throw_if_cancelled();
  }

  void flush_progress(bool now) {
    const std::lock_guard lock(mutex_);
    if (rank_ == 0 || (!now && Clock::now() - last_progress_ < kProgressEvery)) return;
    const uint64_t bytes = done_bytes_.exchange(0);
    last_progress_ = Clock::now();
    if (bytes == 0) return;
    MessageWriter message;
    message.number(bytes);
    send(0, kProgress, message.bytes());
  }

  /// While the other threads work.
  void listen() {
    std::unique_lock lock(listen_mutex_);
    while (!listen_ends_.wait_for(lock, kListenEvery, [this] { return is_leaving_; })) {
      try {
        {
          const std::lock_guard mpi_lock(mutex_);
          pump();
        }
        flush_progress(false);
      } catch (...) {
        const std::lock_guard mpi_lock(mutex_);
        is_broken_ = true;
        if (!failure_) failure_ = as_error(std::current_exception());
        request_cancel();
        return;
      }
    }
  }

  void stop_listening() {
    {
      const std::lock_guard lock(listen_mutex_);
      is_leaving_ = true;
    }
    listen_ends_.notify_all();
    if (listener_.joinable()) listener_.join();
  }

  Error agree(Error mine) {
    {
      const std::lock_guard lock(mutex_);
      if (std::exchange(has_failed_, true)) return mine;
      if (is_broken_) return failure_.value_or(mine);
      // What is wrong with the request is wrong on every rank.
      const bool is_ours =
          mine.code() != ErrorCode::kInterrupted && mine.code() != ErrorCode::kUsage;
      if (!failure_ && is_ours) mine.add_context(name_of(rank_));
      if (!failure_ && rank_ == 0) stop_all(mine);
      if (!failure_) send(0, kFailed, pack(mine));
    }
    const auto end = Clock::now() + kPatience;
    bool all = wait_until(end, [this] { return failure_.has_value(); });
    if (all && rank_ != 0) {
      post(0, kStopped, "");
      all = wait_until(end, [this] { return has_ended_; });
    } else if (all) {
      all = wait_until(end, [this] { return num_stopped_ == size_ - 1; });
      const std::lock_guard lock(mutex_);
      for (int to = 1; to < size_; ++to) send(to, kEnd, "");
      has_ended_ = true;
    }
    const std::lock_guard lock(mutex_);
    is_broken_ = is_broken_ || !all;
    return failure_.value_or(mine);
  }

  const MpiLibrary mpi_;
  const MPI_Comm bulk_;
  const int rank_, size_;
  std::vector<std::string> hosts_;
  std::exception_ptr start_error_;

  std::mutex mutex_;                            // guards MPI and what follows
  std::vector<std::deque<std::string>> inbox_;  // kData, by sender
  std::list<Sending> sending_;
  std::function<void(uint64_t)> on_progress_;
  Clock::time_point last_progress_{};
  std::optional<Error> failure_;  // what ended the job
  int num_stopped_ = 0;
  bool has_ended_ = false;
  bool has_failed_ = false;             // fail was called
  std::atomic<bool> is_broken_{false};  // some rank does not answer

  // Of the thread that exchanges.
  std::vector<std::byte> bulk_memory_;
  std::vector<MPI_Request> requests_;
  std::vector<MPI_Status> statuses_;

  std::atomic<uint64_t> done_bytes_{0};
  std::mutex listen_mutex_;  // guards is_leaving_
  std::condition_variable listen_ends_;
  bool is_leaving_ = false;
  std::thread listener_;
};

}  // namespace

std::unique_ptr<ProcessLink> join_processes(const Launcher& launcher) {
  if (launcher.size == 1) return nullptr;
  // Without one, Open MPI would end the process with a page on how to build it.
  const auto lacks = [](const char* name) { return std::getenv(name) == nullptr; };
  if (launcher.name == "srun" && lacks("PMIX_NAMESPACE") && lacks("PMI_FD")) {
    throw Error(
        ErrorCode::kEnvironment,
        "has started " + std::to_string(launcher.size) + " processes that cannot find each other",
        launcher.name, "use srun --mpi=pmix");
  }
  MpiLibrary mpi = MpiLibrary::open();
  int level = 0, rank = 0, size = 0;
  mpi.check(mpi.init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &level), "MPI_Init_thread");
  mpi.check(mpi.comm_set_errhandler(mpi.world, mpi.errors_return), "MPI_Comm_set_errhandler");
  mpi.check(mpi.comm_rank(mpi.world, &rank), "MPI_Comm_rank");
  mpi.check(mpi.comm_size(mpi.world, &size), "MPI_Comm_size");
  if (launcher.size != 0 && size != launcher.size) {
    mpi.finalize();
    throw Error(ErrorCode::kEnvironment,
                std::to_string(launcher.size) + " processes were started, but MPI sees " +
                    std::to_string(size),
                launcher.name,
                launcher.name == "srun" ? "use srun --mpi=pmix" : "use Open MPI's own mpirun");
  }
  if (level < MPI_THREAD_SERIALIZED) {
    mpi.finalize();
    throw Error(ErrorCode::kEnvironment, "knows no threads", "the MPI library",
                "install Open MPI 4 or later");
  }
  if (size == 1) {
    mpi.finalize();
    return nullptr;
  }
  MPI_Comm bulk = nullptr;
  mpi.check(mpi.comm_dup(mpi.world, &bulk), "MPI_Comm_dup");
  return std::make_unique<MpiGroup>(std::move(mpi), bulk, rank, size);
}

}  // namespace llmctl::runtime
