// Several processes, on one or several hosts, that share one job.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <string>
#include <vector>

namespace llmctl {

/// One process's end of a group of `size()` processes. The collective calls belong to one thread
/// and must be made by all ranks in the same order. Once a rank has failed they throw on every
/// other one, and request_cancel has been called there, so that nobody works on or waits.
class ProcessGroup {
 public:
  virtual ~ProcessGroup() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// How many of the group run on this host, this one included.
  virtual int local_size() const = 0;
  /// "rank 2 (host)", for messages.
  virtual std::string name_of(int rank) const = 0;

  /// Collective: every rank's bytes, by rank, on rank 0; nothing on the others.
  virtual std::vector<std::string> gather(const std::string& bytes) = 0;
  /// Collective: rank 0's bytes, on every rank.
  virtual std::string broadcast(const std::string& bytes) = 0;

  /// From any thread: `bytes` more are done here. Reaches rank 0's listener within a second, and
  /// before the next collective call returns there.
  virtual void add_progress(uint64_t bytes) = 0;
  /// On rank 0: what the other ranks have done comes here, from any thread, until the next call.
  virtual void listen_to_progress(std::function<void(uint64_t bytes)> listener) = 0;

  /// To be called by every rank that leaves the job by an exception, once it has stopped writing:
  /// tells the others, waits until all of them have come here (at most some seconds), and returns
  /// what went wrong first, an Error that names its rank (but for wrong requests and interruptions)
  /// and is the same on every rank. A later call returns its argument.
  virtual std::exception_ptr fail(std::exception_ptr error) noexcept = 0;
};

/// Collective: every rank's bytes, by rank, on every rank.
std::vector<std::string> all_gather(ProcessGroup& group, const std::string& bytes);

/// Collective: throws kEnvironment, naming the rank, unless `value` is the same everywhere.
/// `what` names it ("the source").
void check_same(ProcessGroup& group, const std::string& what, const std::string& value,
                const std::string& hint);

}  // namespace llmctl
