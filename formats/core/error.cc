#include "formats/core/error.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

namespace llmctl {

namespace {

/// Length of the valid UTF-8 sequence at `p` (1 to 4), or 0.
size_t utf8_length(const unsigned char* p, size_t left) {
  const unsigned char c = p[0];
  const size_t n = c < 0x80                ? 1
                   : c >= 0xC2 && c < 0xE0 ? 2
                   : c >= 0xE0 && c < 0xF0 ? 3
                   : c >= 0xF0 && c < 0xF5 ? 4
                                           : 0;
  if (n == 0 || n > left) return 0;
  for (size_t i = 1; i < n; ++i) {
    if ((p[i] & 0xC0) != 0x80) return 0;
  }
  // Overlong forms, surrogates, and what lies past U+10FFFF.
  if ((c == 0xE0 && p[1] < 0xA0) || (c == 0xED && p[1] > 0x9F) || (c == 0xF0 && p[1] < 0x90) ||
      (c == 0xF4 && p[1] > 0x8F)) {
    return 0;
  }
  return n;
}

/// Whether the sequence is a control character, U+0080 to U+009F included: terminals obey those.
bool is_control(const unsigned char* p, size_t length) {
  return length == 1 ? p[0] < 0x20 || p[0] == 0x7F : length == 2 && p[0] == 0xC2 && p[1] < 0xA0;
}

}  // namespace

std::string printable(const std::string& text, size_t max_bytes) {
  std::string out;
  const auto* p = reinterpret_cast<const unsigned char*>(text.data());
  for (size_t i = 0; i < text.size();) {
    if (out.size() >= max_bytes) return out + "...";
    const size_t n = utf8_length(p + i, text.size() - i);
    if (n == 0 || is_control(p + i, n)) {
      char escaped[5];
      std::snprintf(escaped, sizeof escaped, "\\x%02x", p[i]);
      out += escaped;
      ++i;
    } else {
      out.append(text, i, n);
      i += n;
    }
  }
  return out;
}

Error::Error(ErrorCode code, std::string what, std::string where, std::string hint)
    : code_(code), what_(std::move(what)), where_(std::move(where)), hint_(std::move(hint)) {
  compose();
}

void Error::add_context(const std::string& context) {
  where_ = where_.empty() ? context : context + ": " + where_;
  compose();
}

void Error::compose() {
  line_ = where_.empty() ? what_ : where_ + ": " + what_;
  if (!hint_.empty()) line_ += "; " + hint_;
  // Paths and texts from files reach here from many places; whatever they hold, it stays one line.
  line_ = printable(line_, std::string::npos);
}

void throw_usage(const std::string& where, const std::string& what, const std::string& hint) {
  throw Error(ErrorCode::kUsage, what, where, hint);
}

void throw_invalid(const std::string& where, const std::string& what, const std::string& hint) {
  throw Error(ErrorCode::kInvalidInput, what, where, hint);
}

void throw_errno(const std::string& where, const std::string& what, const std::string& hint) {
  const int saved = errno;
  throw Error(ErrorCode::kEnvironment, what + ": " + std::strerror(saved), where, hint);
}

}  // namespace llmctl
