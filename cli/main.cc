#include <exception>

#include "cli/commands.h"
#include "cli/process.h"
#include "cli/processes.h"

int main(int argc, char** argv) {
  llmctl::cli::prepare_process();
  try {
    return llmctl::cli::exit_status(llmctl::cli::run_command_line(argc, argv));
  } catch (...) {
    const bool quiet = !llmctl::cli::speaks_for_host();
    return llmctl::cli::exit_status(llmctl::cli::report(std::current_exception(), quiet));
  }
}
