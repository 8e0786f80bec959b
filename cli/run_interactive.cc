#include "cli/run_interactive.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <optional>

#include "cli/output.h"
#include "cli/run_input.h"
#include "cli/run_output.h"
#include "formats/core/cancel.h"
#include "formats/core/error.h"

namespace llmctl::cli {
namespace {

std::atomic<bool> ctrl_c{false};
static_assert(std::atomic<bool>::is_always_lock_free);

/// Both ends of a pipe: a signal that comes just before a read would otherwise be seen after it.
int wake_pipe[2] = {-1, -1};

void on_ctrl_c(int) {
  const int saved = errno;
  ctrl_c.store(true);
  // A full pipe wakes as well as a fuller one.
  [[maybe_unused]] const ssize_t n = ::write(wake_pipe[1], "", 1);
  errno = saved;
}

/// Ctrl-C ends an answer and not the process, as long as this lives.
class AnswerSignals {
 public:
  AnswerSignals() {
    if (::pipe2(wake_pipe, O_CLOEXEC | O_NONBLOCK) != 0) throw_errno("pipe", "cannot be made");
    struct sigaction action = {};
    action.sa_handler = on_ctrl_c;
    ::sigaction(SIGINT, &action, &before_);
  }
  ~AnswerSignals() {
    ::sigaction(SIGINT, &before_, nullptr);
    for (const int end : wake_pipe) ::close(end);
  }
  AnswerSignals(const AnswerSignals&) = delete;
  AnswerSignals& operator=(const AnswerSignals&) = delete;

 private:
  struct sigaction before_ = {};
};

/// Lines of stdin. The terminal's own line editing is what there is.
class LineReader {
 public:
  /// The next line, its lines after backslashes included; nothing at the end. Ctrl-C drops what was
  /// typed and asks again.
  std::optional<std::string> read() {
    std::string text;
    write_stderr("> ");
    for (;;) {
      const auto line = read_line();
      if (ctrl_c.exchange(false)) {
        buffer_.clear();
        text.clear();
        write_stderr("\n(Ctrl-D ends the session)\n> ");
        continue;
      }
      throw_if_cancelled();
      if (!line) return std::nullopt;
      text += *line;
      if (text.empty() || text.back() != '\\') return text;
      text.back() = '\n';
      write_stderr("... ");
    }
  }

 private:
  std::optional<std::string> read_line() {
    for (;;) {
      if (const size_t end = buffer_.find('\n'); end != std::string::npos) {
        std::string line = buffer_.substr(0, end);
        buffer_.erase(0, end + 1);
        return line;
      }
      char bytes[4096];
      pollfd inputs[2] = {{STDIN_FILENO, POLLIN, 0}, {wake_pipe[0], POLLIN, 0}};
      const int ready = ::poll(inputs, 2, -1);
      if (cancel_requested()) return std::nullopt;
      if (inputs[1].revents != 0 && ready > 0) {
        while (::read(wake_pipe[0], bytes, sizeof bytes) > 0) continue;
        if (ctrl_c.load()) return std::nullopt;
      }
      if (ready <= 0 || inputs[0].revents == 0) continue;
      const ssize_t n = ::read(STDIN_FILENO, bytes, sizeof bytes);
      if (n > 0) {
        buffer_.append(bytes, static_cast<size_t>(n));
        continue;
      }
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) throw Error(ErrorCode::kEnvironment, std::strerror(errno), "stdin");
      if (buffer_.empty()) return std::nullopt;
      return std::exchange(buffer_, {});
    }
  }

  std::string buffer_;
};

constexpr std::string_view kHelp =
    "/reset forgets what was said, /exit or Ctrl-D ends, Ctrl-C stops an answer;\n"
    "a backslash at the end of a line continues it in the next\n";

}  // namespace

SessionPrompts plain_prompts(const runtime::Tokenizer& tokenizer) {
  return {[&tokenizer](const std::vector<int32_t>& context, const std::string& text) {
    std::vector<int32_t> ids = context;
    const auto more = tokenizer.encode(text, context.empty());
    ids.insert(ids.end(), more.begin(), more.end());
    return ids;
  }};
}

void run_interactive(runtime::Engine& engine, const runtime::Tokenizer& tokenizer,
                     const runtime::GenerateRequest& request, bool choose_max_new_tokens,
                     const SessionPrompts& prompts) {
  const AnswerSignals signals;
  LineReader reader;
  std::vector<int32_t> context;
  write_stderr(kHelp);
  while (const auto line = reader.read()) {
    if (line->empty()) continue;
    if (*line == "/exit" || *line == "/quit") break;
    if (*line == "/reset") {
      context.clear();
      continue;
    }
    if (line->starts_with("/")) {
      write_stderr(kHelp);
      continue;
    }
    try {
      const runtime::GenerateRequest turn = with_prompt(request, prompts.encode(context, *line),
                                                        engine.config(), choose_max_new_tokens);
      AnswerText answer(&tokenizer, turn);
      runtime::GenerateCallbacks callbacks;
      callbacks.on_token = [&](size_t, int32_t id) { write_stdout(answer.push(id)); };
      callbacks.should_stop = [] { return ctrl_c.load(); };
      const auto report = engine.generate({&turn, 1}, callbacks);
      write_stdout(answer.finish() + "\n");
      ctrl_c.store(false);
      const runtime::GenerateResult& result = report.results[0];
      context = turn.prompt_ids;
      context.insert(context.end(), result.ids.begin(), result.ids.end());
      // The end of the text is not said.
      if (result.stop_reason == runtime::StopReason::kStopId) context.pop_back();
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kUsage) throw;
      write_stderr(std::string("llmctl: ") + error.what() + "\n");
    }
  }
}

}  // namespace llmctl::cli
