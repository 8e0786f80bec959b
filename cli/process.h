// The process around a command: signals, standard descriptors, and the one line an error becomes.
#pragma once

#include <exception>

#include "cli/exit_code.h"

namespace llmctl::cli {

/// Called once, first in main. SIGINT, SIGTERM and SIGHUP request cancellation, a second one
/// kills; a closed pipe and a file size limit become a failed write; closed standard descriptors
/// are opened on /dev/null, so that no checkpoint file can take the number of stdout.
void prepare_process();

/// Prints "llmctl: error: where: what; hint" on stderr and returns the exit code. A closed pipe
/// prints nothing and counts as done. With `quiet` only the code is told.
ExitCode report(const std::exception_ptr& error, bool quiet = false) noexcept;

}  // namespace llmctl::cli
