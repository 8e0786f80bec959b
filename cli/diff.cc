#include "cli/commands.h"

namespace llmctl::cli {

Run add_diff(CLI::App&) {
  return []() -> ExitCode { throw Error(ErrorCode::kInternal, "diff is not there yet"); };
}

}  // namespace llmctl::cli
