#include "formats/core/error.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

namespace llmctl {

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

namespace {

/// Length of the valid UTF-8 sequence at `p` (1 to 4), or 0.
size_t utf8_length(const unsigned char* p, size_t left) {
  const unsigned char c = p[0];
  const size_t n = c < 0x80 ? 1 : c >= 0xC2 && c < 0xE0 ? 2 : c >= 0xE0 && c < 0xF0 ? 3
                   : c >= 0xF0 && c < 0xF5              ? 4
                                                        : 0;
  if (n == 0 || n > left) return 0;
  for (size_t i = 1; i < n; ++i) {
    if ((p[i] & 0xC0) != 0x80) return 0;
  }
  return n;
}

}  // namespace

std::string printable(const std::string& text, size_t max_bytes) {
  std::string out;
  const auto* p = reinterpret_cast<const unsigned char*>(text.data());
  for (size_t i = 0; i < text.size();) {
    if (out.size() >= max_bytes) return out + "...";
    const size_t n = utf8_length(p + i, text.size() - i);
    if (n == 0 || (n == 1 && (p[i] < 0x20 || p[i] == 0x7F))) {
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

}  // namespace llmctl
