// A verb whose work several processes share, when mpirun or srun has started them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "cli/exit_code.h"
#include "runtime/comm/process_link.h"

namespace llmctl::cli {

/// Calls `body` with the group of all processes that a launcher has started, or with null when this
/// is the only one. When it throws on any rank, rank 0 prints the error that came first and all
/// return its exit code; a closed pipe ends all quietly. All return together.
ExitCode share_work(const std::function<ExitCode(runtime::ProcessLink* group)>& body);

/// Throws kUsage when a launcher has started several processes: each would do all of the work.
void refuse_several_processes(const std::string& verb);

/// Whether this process prints what goes wrong before the processes have met: the first on each
/// host does.
bool speaks_for_host();

/// Processes that share this host's cores, this one included.
int64_t processes_on_host();

}  // namespace llmctl::cli
