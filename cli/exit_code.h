// The exit codes of llmctl: a contract with scripts, listed in docs/errors.md.
#pragma once

#include "formats/core/error.h"

namespace llmctl::cli {

enum class ExitCode {
  kDone = 0,
  kAnswerIsNo = 1,     ///< the work was done and the answer is no (`diff` found a difference)
  kUsage = 2,          ///< wrong usage or an impossible request
  kInputRejected = 3,  ///< the input was read and refused
  kEnvironment = 4,    ///< I/O, memory, a device or a peer failed
  kInternal = 5,       ///< our own mistake
  kInterrupted = 130,  ///< stopped by a signal
};

constexpr ExitCode exit_code(ErrorCode code) {
  switch (code) {
    case ErrorCode::kUsage:
      return ExitCode::kUsage;
    case ErrorCode::kInvalidInput:
      return ExitCode::kInputRejected;
    case ErrorCode::kEnvironment:
      return ExitCode::kEnvironment;
    case ErrorCode::kInternal:
      return ExitCode::kInternal;
    case ErrorCode::kInterrupted:
      return ExitCode::kInterrupted;
  }
  return ExitCode::kInternal;
}

constexpr int exit_status(ExitCode code) { return static_cast<int>(code); }

}  // namespace llmctl::cli
