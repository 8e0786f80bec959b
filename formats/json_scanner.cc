#include "formats/json_scanner.h"

#include <utility>

#include "formats/core/checked.h"
#include "formats/core/error.h"

namespace llmctl::formats {
namespace {

constexpr size_t kMaxDepth = 64;

bool is_white_space(int c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
bool is_digit(int c) { return c >= '0' && c <= '9'; }

void append_utf8(std::string& out, uint32_t code) {
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xC0 | code >> 6);
    out += static_cast<char>(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    out += static_cast<char>(0xE0 | code >> 12);
    out += static_cast<char>(0x80 | (code >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (code & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | code >> 18);
    out += static_cast<char>(0x80 | (code >> 12 & 0x3F));
    out += static_cast<char>(0x80 | (code >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (code & 0x3F));
  }
}

/// What may follow a UTF-8 lead byte: how many bytes, and the range of the first of them, which is
/// where overlong forms, surrogates and code points past U+10FFFF differ from valid text.
struct Utf8Tail {
  int length;
  int low;
  int high;
};

Utf8Tail utf8_tail(int lead) {
  if (lead >= 0xC2 && lead <= 0xDF) return {1, 0x80, 0xBF};
  if (lead == 0xE0) return {2, 0xA0, 0xBF};
  if (lead == 0xED) return {2, 0x80, 0x9F};
  if (lead >= 0xE1 && lead <= 0xEF) return {2, 0x80, 0xBF};
  if (lead == 0xF0) return {3, 0x90, 0xBF};
  if (lead >= 0xF1 && lead <= 0xF3) return {3, 0x80, 0xBF};
  if (lead == 0xF4) return {3, 0x80, 0x8F};
  return {0, 0, 0};
}

}  // namespace

JsonScanner::JsonScanner(Refill refill, std::string where)
    : refill_(std::move(refill)), where_(std::move(where)) {}

void JsonScanner::fail(const std::string& what) const {
  throw_invalid(where_, "not valid JSON at byte " + std::to_string(consumed_ + next_) + ": " + what,
                "the file is damaged or not what its name says; fetch it again");
}

int JsonScanner::peek() {
  if (next_ == window_.size()) {
    if (at_end_) return -1;
    consumed_ += window_.size();
    window_ = refill_();
    next_ = 0;
    if (window_.empty()) {
      at_end_ = true;
      return -1;
    }
  }
  return std::to_integer<int>(window_[next_]);
}

int JsonScanner::take() {
  const int c = peek();
  if (c < 0) fail("the text ends early");
  ++next_;
  return c;
}

void JsonScanner::skip_white_space() {
  while (is_white_space(peek())) ++next_;
}

void JsonScanner::expect(char c, const char* what) {
  skip_white_space();
  if (peek() != c) fail(peek() < 0 ? "the text ends early" : std::string("expected ") + what);
  ++next_;
}

void JsonScanner::open(char c, const char* what) {
  expect(c, what);
  if (has_items_.size() == kMaxDepth) fail("nested deeper than 64 levels");
  has_items_.push_back(false);
}

void JsonScanner::enter_object() { open('{', "an object"); }
void JsonScanner::enter_array() { open('[', "an array"); }

bool JsonScanner::next_item(char close) {
  skip_white_space();
  if (peek() == close) {
    ++next_;
    has_items_.pop_back();
    return false;
  }
  if (has_items_.back()) expect(',', close == '}' ? "',' or '}'" : "',' or ']'");
  has_items_.back() = true;
  return true;
}

bool JsonScanner::next_key(std::string& key, size_t max_bytes) {
  if (!next_item('}')) return false;
  skip_white_space();
  key.clear();
  read_text_into(&key, max_bytes);
  expect(':', "':'");
  return true;
}

bool JsonScanner::next_element() { return next_item(']'); }

std::string JsonScanner::read_text(size_t max_bytes) {
  skip_white_space();
  std::string text;
  read_text_into(&text, max_bytes);
  return text;
}

uint32_t JsonScanner::read_code_unit() {
  uint32_t code = 0;
  for (int i = 0; i < 4; ++i) {
    const int c = take();
    const int digit = is_digit(c)            ? c - '0'
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                             : -1;
    if (digit < 0) fail("\\u must be followed by four hexadecimal digits");
    code = code << 4 | static_cast<uint32_t>(digit);
  }
  return code;
}

void JsonScanner::read_text_into(std::string* out, size_t max_bytes) {
  expect('"', "a text");
  std::string unused;
  std::string& text = out != nullptr ? *out : unused;
  for (;;) {
    if (out == nullptr) text.clear();
    if (text.size() > max_bytes)
      fail("a text is longer than " + std::to_string(max_bytes) + " bytes");
    const int c = take();
    if (c == '"') return;
    if (c < 0x20) fail("a control byte inside a text");
    if (c >= 0x80) {
      const Utf8Tail tail = utf8_tail(c);
      if (tail.length == 0) fail("invalid UTF-8");
      text += static_cast<char>(c);
      for (int i = 0; i < tail.length; ++i) {
        const int next = take();
        if (next < (i == 0 ? tail.low : 0x80) || next > (i == 0 ? tail.high : 0xBF)) {
          fail("invalid UTF-8");
        }
        text += static_cast<char>(next);
      }
      continue;
    }
    if (c != '\\') {
      text += static_cast<char>(c);
      continue;
    }
    switch (const int escape = take()) {
      case '"':
      case '\\':
      case '/':
        text += static_cast<char>(escape);
        break;
      case 'b':
        text += '\b';
        break;
      case 'f':
        text += '\f';
        break;
      case 'n':
        text += '\n';
        break;
      case 'r':
        text += '\r';
        break;
      case 't':
        text += '\t';
        break;
      case 'u': {
        uint32_t code = read_code_unit();
        if (code >= 0xD800 && code <= 0xDBFF) {
          if (take() != '\\' || take() != 'u') fail("half a surrogate pair");
          const uint32_t low = read_code_unit();
          if (low < 0xDC00 || low > 0xDFFF) fail("half a surrogate pair");
          code = 0x10000 + ((code - 0xD800) << 10 | (low - 0xDC00));
        } else if (code >= 0xDC00 && code <= 0xDFFF) {
          fail("half a surrogate pair");
        }
        append_utf8(text, code);
        break;
      }
      default:
        fail("unknown escape");
    }
  }
}

bool JsonScanner::is_at_text() {
  skip_white_space();
  return peek() == '"';
}

bool JsonScanner::is_at_object() {
  skip_white_space();
  return peek() == '{';
}

std::optional<uint64_t> JsonScanner::read_any_size() {
  skip_white_space();
  if (!is_digit(peek())) {
    skip_value();
    return std::nullopt;
  }
  std::optional<uint64_t> value = 0;
  if (peek() == '0') {
    ++next_;
    if (is_digit(peek())) fail("a number starts with 0");
  }
  for (; is_digit(peek()); ++next_) {
    if (value) value = checked_mul(*value, 10);
    if (value) value = checked_add(*value, static_cast<uint64_t>(peek() - '0'));
  }
  if (skip_fraction_and_exponent()) return std::nullopt;
  return value;
}

uint64_t JsonScanner::read_size() {
  skip_white_space();
  if (!is_digit(peek())) fail("expected a non-negative integer");
  const auto value = read_any_size();
  if (!value) fail("expected a whole number that fits 64 bits");
  return *value;
}

bool JsonScanner::skip_fraction_and_exponent() {
  bool has_any = false;
  if (peek() == '.') {
    has_any = true;
    ++next_;
    if (!is_digit(peek())) fail("expected a digit");
    while (is_digit(peek())) ++next_;
  }
  if (peek() == 'e' || peek() == 'E') {
    has_any = true;
    ++next_;
    if (peek() == '+' || peek() == '-') ++next_;
    if (!is_digit(peek())) fail("expected a digit");
    while (is_digit(peek())) ++next_;
  }
  return has_any;
}

void JsonScanner::skip_number() {
  if (peek() == '-') ++next_;
  if (!is_digit(peek())) fail("expected a value");
  if (take() == '0' && is_digit(peek())) fail("a number starts with 0");
  while (is_digit(peek())) ++next_;
  skip_fraction_and_exponent();
}

void JsonScanner::skip_word(const char* word) {
  for (; *word != '\0'; ++word) {
    if (take() != *word) fail("expected a value");
  }
}

void JsonScanner::skip_value() {
  // The open containers below `base` belong to the caller; those above it are walked here, so the
  // depth of the input costs a bit each and no stack.
  const size_t base = has_items_.size();
  std::vector<char> closers;
  for (;;) {
    skip_white_space();
    switch (peek()) {
      case '{':
        enter_object();
        closers.push_back('}');
        break;
      case '[':
        enter_array();
        closers.push_back(']');
        break;
      case '"':
        read_text_into(nullptr, SIZE_MAX);
        break;
      case 't':
        skip_word("true");
        break;
      case 'f':
        skip_word("false");
        break;
      case 'n':
        skip_word("null");
        break;
      default:
        skip_number();
    }
    // Close what is complete, then stand before the next value.
    while (has_items_.size() > base && !next_item(closers.back())) closers.pop_back();
    if (has_items_.size() == base) return;
    if (closers.back() == '}') {
      skip_white_space();
      read_text_into(nullptr, SIZE_MAX);
      expect(':', "':'");
    }
  }
}

void JsonScanner::finish(bool any_white_space) {
  while (peek() == ' ' || (any_white_space && is_white_space(peek()))) ++next_;
  if (peek() >= 0) fail("something follows the end");
}

}  // namespace llmctl::formats
