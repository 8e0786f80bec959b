#include "cli/processes.h"

#include <exception>
#include <memory>

#include "cli/output.h"
#include "cli/process.h"
#include "formats/core/error.h"
#include "runtime/comm/launcher.h"

namespace llmctl::cli {

namespace {

/// A closed pipe, as the other processes hear of it.
constexpr const char* kClosedPipe = "the reader of the output has gone";

bool is_closed_pipe(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& e) {
    return e.code() == ErrorCode::kInterrupted && e.message() == kClosedPipe;
  } catch (...) {
    return false;
  }
}

}  // namespace

ExitCode share_work(const std::function<ExitCode(runtime::ProcessLink*)>& body) {
  const auto launcher = runtime::find_launcher();
  const std::unique_ptr<runtime::ProcessLink> group =
      launcher ? join_processes(*launcher) : nullptr;
  if (!group) return body(nullptr);
  std::exception_ptr error;
  try {
    const ExitCode code = body(group.get());
    // A rank that is done hears here of one that has failed at the end.
    all_gather(*group, "");
    return code;
  } catch (const ClosedPipe&) {
    error = std::make_exception_ptr(Error(ErrorCode::kInterrupted, kClosedPipe));
  } catch (...) {
    error = std::current_exception();
  }
  error = group->fail(error);
  if (is_closed_pipe(error)) return ExitCode::kDone;
  // Before the group dissolves: a launcher ends the others once one has left with an error.
  return report(error, /*quiet=*/group->rank() != 0);
}

void refuse_several_processes(const std::string& verb) {
  const auto launcher = runtime::find_launcher();
  if (!launcher || launcher->size == 1) return;
  throw_usage(
      "llmctl " + verb,
      "does not share its work between processes, and " + launcher->name + " has started several",
      "start it once, without " + launcher->name);
}

bool speaks_for_host() {
  const auto launcher = runtime::find_launcher();
  return !launcher || launcher->local_rank == 0;
}

int64_t processes_on_host() {
  const auto launcher = runtime::find_launcher();
  return launcher ? launcher->local_size : 1;
}

}  // namespace llmctl::cli
