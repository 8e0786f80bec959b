#include "cli/commands.h"

namespace llmctl::cli {

Run add_run(CLI::App&) {
  return []() -> ExitCode { throw Error(ErrorCode::kInternal, "run is not there yet"); };
}

}  // namespace llmctl::cli
