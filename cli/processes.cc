#include "cli/processes.h"

#include <exception>
#include <memory>

#include "cli/process.h"
#include "formats/core/error.h"
#include "runtime/comm/launcher.h"

namespace llmctl::cli {

ExitCode share_work(const std::function<ExitCode(ProcessGroup*)>& body) {
  const auto launcher = runtime::find_launcher();
  const std::unique_ptr<ProcessGroup> group = launcher ? join_processes(*launcher) : nullptr;
  if (!group) return body(nullptr);
  try {
    return body(group.get());
  } catch (...) {
    const std::exception_ptr error = group->fail(std::current_exception());
    // Before the group dissolves: a launcher ends the others once one has left with an error.
    return report(error, /*quiet=*/group->rank() != 0);
  }
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
