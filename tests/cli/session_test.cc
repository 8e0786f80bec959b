// `llmctl run MODEL` on a terminal, through a pseudo-terminal.
#include <doctest/doctest.h>
#include <poll.h>
#include <pty.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <string>

#include "tests/support/command.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"

namespace llmctl::test {
namespace {

/// llmctl with a terminal of its own.
class Session {
 public:
  explicit Session(const std::string& flags) {
    pid_ = ::forkpty(&terminal_, nullptr, nullptr, nullptr);
    REQUIRE(pid_ >= 0);
    if (pid_ == 0) {
      const std::string script = "stty -echo; exec " + llmctl_binary().string() + " run " +
                                 (source_root() / "samples/llama-stories").string() +
                                 " --dtype fp32 " + flags;
      ::execl("/bin/sh", "sh", "-c", script.c_str(), nullptr);
      ::_exit(127);
    }
  }
  ~Session() {
    ::close(terminal_);
    if (pid_ > 0) ::waitpid(pid_, nullptr, 0);
  }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  /// What is printed up to and with `end`.
  std::string read_until(const std::string& end) {
    size_t at = 0;
    while ((at = text_.find(end)) == std::string::npos) {
      pollfd ready{terminal_, POLLIN, 0};
      char bytes[1024];
      if (::poll(&ready, 1, 60'000) <= 0) break;
      const ssize_t n = ::read(terminal_, bytes, sizeof bytes);
      if (n <= 0) break;
      for (ssize_t i = 0; i < n; ++i) {
        if (bytes[i] != '\r') text_ += bytes[i];
      }
    }
    if (at == std::string::npos) return "MISSING " + end + " in: " + text_;
    const std::string part = text_.substr(0, at + end.size());
    text_.erase(0, at + end.size());
    return part;
  }

  void type(const std::string& keys) {
    REQUIRE(::write(terminal_, keys.data(), keys.size()) == static_cast<ssize_t>(keys.size()));
  }

  int wait() {
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  int terminal_ = -1;
  pid_t pid_ = -1;
  std::string text_;
};

}  // namespace

TEST_CASE("session: turns go on from those before until Ctrl-D") {
  Session session("-n 5");
  session.read_until("\n> ");
  session.type("Once upon a time\n");
  CHECK(session.read_until("\n> ") == ", there was a little\n> ");
  session.type(" girl\n");
  CHECK(session.read_until("\n> ") == " named Lily. She loved\n> ");
  session.type("/reset\n");
  session.read_until("> ");
  session.type("Once upon a \\\n");
  CHECK(session.read_until("... ") == "... ");
  session.type("\x03");
  session.read_until("Ctrl-D ends the session)\n> ");
  session.type("Once upon a time\n");
  CHECK(session.read_until("\n> ") == ", there was a little\n> ");
  session.type("/nothing\n");
  CHECK(session.read_until("\n> ").find("/reset forgets") != std::string::npos);
  session.type("\x04");
  CHECK(session.wait() == 0);
}

TEST_CASE("session: Ctrl-C ends the answer and not the session") {
  Session session("-n 100000 --ignore-eos --context-overflow slide");
  session.read_until("\n> ");
  session.type("Once upon a time\n");
  session.read_until("little");
  session.type("\x03");
  session.read_until("\n> ");
  session.type("/exit\n");
  CHECK(session.wait() == 0);
}

TEST_CASE("session: a turn that does not fit is refused and the session goes on") {
  Session session("-n 600");
  session.read_until("\n> ");
  session.type("Once\n");
  CHECK(session.read_until("\n> ").find("needs more than the model's 512 positions") !=
        std::string::npos);
  session.type("/exit\n");
  CHECK(session.wait() == 0);
}

TEST_CASE("session: with --chat it is a conversation whose answers are said by the assistant") {
  const TempDir directory;
  const auto file = directory / "chat.jinja";
  std::ofstream(file)
      << "{% if messages | length > 3 %}{{ raise_exception(messages | map(attribute='role')"
         " | join(' ') ~ ': ' ~ messages[0].content) }}{% endif %}"
         "{{ messages[-1].content }}";
  Session session("--chat --system Hush --chat-template " + file.string() + " -n 8");
  session.read_until("\n> ");
  session.type("Once upon a time\n");
  CHECK(session.read_until("\n> ").find("there was") != std::string::npos);
  session.type("One day\n");
  CHECK(session.read_until("\n> ").find("system user assistant user: Hush") != std::string::npos);
  session.type("/reset\n");
  session.read_until("\n> ");
  session.type("Once upon a time\n");
  CHECK(session.read_until("\n> ").find("there was") != std::string::npos);
  session.type("/exit\n");
}

}  // namespace llmctl::test
