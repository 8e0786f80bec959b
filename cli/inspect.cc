#include "cli/commands.h"

namespace llmctl::cli {

Run add_inspect(CLI::App&) {
  return []() -> ExitCode { throw Error(ErrorCode::kInternal, "inspect is not there yet"); };
}

}  // namespace llmctl::cli
