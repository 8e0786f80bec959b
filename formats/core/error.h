// The one exception type of the project: what went wrong, where, and how to mend it.
#pragma once

#include <exception>
#include <string>

namespace llmctl {

/// Classes of failure; `cli/exit_code.h` maps each to the documented exit code.
enum class ErrorCode {
  kUsage,         ///< wrong usage or an impossible request (exit 2)
  kInvalidInput,  ///< the input was read and rejected (exit 3)
  kEnvironment,   ///< I/O, memory, device or peers failed (exit 4)
  kInternal,      ///< our own mistake (exit 5)
  kInterrupted,   ///< stopped by a signal (exit 130)
};

/// A failure that ends the request. Only `main` turns it into a message; layers in between may
/// add context. Immutable but for `add_context`; safe to carry across threads as exception_ptr.
class Error : public std::exception {
 public:
  /// `where` (a file, a flag, a tensor) and `hint` (how to mend it) may be empty.
  Error(ErrorCode code, std::string what, std::string where = {}, std::string hint = {});

  ErrorCode code() const { return code_; }
  const std::string& message() const { return what_; }
  const std::string& where() const { return where_; }
  const std::string& hint() const { return hint_; }

  /// Puts `context` in front of `where`, outermost first.
  void add_context(const std::string& context);

  /// One line: "where: what; hint".
  const char* what() const noexcept override { return line_.c_str(); }

 private:
  void compose();

  ErrorCode code_;
  std::string what_, where_, hint_, line_;
};

[[noreturn]] void throw_usage(const std::string& where, const std::string& what,
                              const std::string& hint = {});
[[noreturn]] void throw_invalid(const std::string& where, const std::string& what,
                                const std::string& hint = {});
/// Appends the text of `errno` (as it was on entry) to `what`.
[[noreturn]] void throw_errno(const std::string& where, const std::string& what,
                              const std::string& hint = {});

/// Text from an untrusted file made safe to print on one line: control bytes and invalid UTF-8
/// become \xNN, and anything beyond `max_bytes` is cut with "...".
std::string printable(const std::string& text, size_t max_bytes = 200);

}  // namespace llmctl
