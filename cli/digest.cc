#include "cli/commands.h"

namespace llmctl::cli {

Run add_digest(CLI::App&) {
  return []() -> ExitCode { throw Error(ErrorCode::kInternal, "digest is not there yet"); };
}

}  // namespace llmctl::cli
