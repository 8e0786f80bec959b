#include "cli/commands.h"

namespace llmctl::cli {

Run add_convert(CLI::App&) {
  return []() -> ExitCode { throw Error(ErrorCode::kInternal, "convert is not there yet"); };
}

}  // namespace llmctl::cli
