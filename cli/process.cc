#include "cli/process.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <new>
#include <string>
#include <system_error>

#include "cli/output.h"
#include "formats/core/cancel.h"

namespace llmctl::cli {
namespace {

void on_signal(int) { request_cancel(); }

void print_line(const std::string& line) {
  const bool color = wants_color(STDERR_FILENO);
  write_stderr(std::string("llmctl: ") + (color ? "\033[1;31merror:\033[0m " : "error: ") +
               printable(line, 4000) + "\n");
}

std::atomic<bool> has_lacked_memory{false};

void on_memory_shortage() {
  has_lacked_memory.store(true);
  throw std::bad_alloc();
}

/// What may not throw and runs out of memory ends the process: destructors of JSON documents, the
/// library's iterator over a directory, which leaves no exception to look at. That is no reason for
/// a core dump: the line and the code are those of any shortage.
[[noreturn]] void on_terminate() {
  std::exception_ptr error = std::current_exception();
  if (!error && !has_lacked_memory.load()) std::abort();
  if (!error) error = std::make_exception_ptr(std::bad_alloc());
  ::_exit(exit_status(report(error)));
}

}  // namespace

void prepare_process() {
  std::set_new_handler(on_memory_shortage);
  std::set_terminate(on_terminate);
  for (int descriptor = STDIN_FILENO; descriptor <= STDERR_FILENO; ++descriptor) {
    // open() takes the lowest free number, which is `descriptor` when that one is closed.
    if (::fcntl(descriptor, F_GETFD) == -1) [[maybe_unused]]
      const int fd = ::open("/dev/null", O_RDWR);
  }
  struct sigaction action = {};
  action.sa_handler = SIG_IGN;
  ::sigaction(SIGPIPE, &action, nullptr);
  // A file size limit then shows as a failed write, which cleans up after itself.
  ::sigaction(SIGXFSZ, &action, nullptr);
  action.sa_handler = on_signal;
  // No SA_RESTART: a blocked read or write returns and its loop sees the flag.
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction old = {};
    ::sigaction(signal, nullptr, &old);
    // A shell's background job or nohup ignores a signal on purpose.
    if (old.sa_handler != SIG_IGN) ::sigaction(signal, &action, nullptr);
  }
}

ExitCode report(const std::exception_ptr& error, bool quiet) noexcept {
  const auto print_error = [quiet](const std::string& line) {
    if (!quiet) print_line(line);
  };
  try {
    std::rethrow_exception(error);
  } catch (const ClosedPipe&) {
    return ExitCode::kDone;
  } catch (const Error& e) {
    if (e.code() == ErrorCode::kInterrupted) {
      if (!quiet) write_stderr("llmctl: interrupted\n");
    } else if (e.code() == ErrorCode::kInternal) {
      print_error(std::string(e.what()) + "; this is a bug in llmctl, please report it");
    } else {
      print_error(e.what());
    }
    return exit_code(e.code());
  } catch (const std::bad_alloc&) {
    if (!quiet) {
      write_stderr("llmctl: error: out of memory; use fewer --jobs or free some memory\n");
    }
    return ExitCode::kEnvironment;
  } catch (const std::system_error& e) {
    // std::filesystem and std::thread: the message holds the paths and the errno text.
    print_error(e.what());
    return ExitCode::kEnvironment;
  } catch (const std::exception& e) {
    print_error(std::string(e.what()) + "; this is a bug in llmctl, please report it");
    return ExitCode::kInternal;
  } catch (...) {
    print_error("unknown exception; this is a bug in llmctl, please report it");
    return ExitCode::kInternal;
  }
}

}  // namespace llmctl::cli
