#include "runtime/chat/lexer.h"

#include <algorithm>
#include <array>
#include <utility>

#include "formats/core/error.h"
#include "runtime/chat/text.h"
#include "runtime/tokenizer/unicode.h"

namespace llmctl::runtime::chat {

namespace {

// Longest first, so that "//" is not two divisions.
constexpr std::array<std::string_view, 26> kOperators = {
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
    "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"};

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_start(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_name_part(char c) { return is_name_start(c) || is_digit(c); }

/// Line feeds alone end lines, and one at the very end goes (keep_trailing_newline is off).
std::string with_plain_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out += source[i];
    }
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

class Lexer {
 public:
  Lexer(std::string source, const std::string& where) : source_(std::move(source)), where_(where) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) read_data();
    push(Token::Kind::kEnd, {});
    return std::move(tokens_);
  }

 private:
  enum class Tag { kPrint, kBlock, kComment };

  [[noreturn]] void fail(const std::string& what) const {
    throw_template_error(where_, line_, what);
  }

  void push(Token::Kind kind, std::string text) {
    tokens_.push_back({kind, std::move(text), line_});
  }
  bool looking_at(std::string_view text) const {
    return std::string_view(source_).substr(at_).starts_with(text);
  }
  /// Moves to `position`, counting lines.
  void advance_to(size_t position) {
    line_ +=
        static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(at_),
                                    source_.begin() + static_cast<std::ptrdiff_t>(position), '\n'));
    at_ = position;
  }
  size_t skip_space_from(size_t position) const {
    while (position < source_.size()) {
      size_t next = position;
      if (!is_python_space(next_character(source_, next))) break;
      position = next;
    }
    return position;
  }

  /// Text up to the next tag, then the tag.
  void read_data() {
    size_t open = at_;
    while (true) {
      open = std::min(source_.find('{', open), source_.size());
      if (open == source_.size()) break;
      const char next = open + 1 < source_.size() ? source_[open + 1] : '\0';
      if (next == '{' || next == '%' || next == '#') break;
      ++open;
    }
    std::string text = source_.substr(at_, open - at_);
    if (open == source_.size()) {
      if (!text.empty()) push(Token::Kind::kData, std::move(text));
      advance_to(open);
      return;
    }
    const char kind = source_[open + 1];
    const Tag tag = kind == '{' ? Tag::kPrint : kind == '%' ? Tag::kBlock : Tag::kComment;
    size_t inside = open + 2;
    char sign = '\0';
    if (inside < source_.size() && (source_[inside] == '-' || source_[inside] == '+')) {
      sign = source_[inside++];
    }
    strip_before_tag(text, sign, tag);
    if (!text.empty()) push(Token::Kind::kData, std::move(text));
    advance_to(inside);
    if (tag == Tag::kComment) {
      read_comment();
    } else if (tag == Tag::kBlock && read_raw()) {
      // read_raw has done it all.
    } else {
      push(tag == Tag::kPrint ? Token::Kind::kPrint : Token::Kind::kBlock, {});
      read_code(tag == Tag::kPrint);
    }
  }

  /// "-" takes the white space before a tag; without a mark lstrip_blocks takes the blanks of a
  /// line that has nothing else before the tag.
  void strip_before_tag(std::string& text, char sign, Tag tag) const {
    if (sign == '-') {
      text = strip(text, Side::kRight);
      return;
    }
    if (sign == '+' || tag == Tag::kPrint) return;
    const size_t newline = text.rfind('\n');
    if (newline == std::string::npos && !line_starting_) return;
    const size_t begin = newline == std::string::npos ? 0 : newline + 1;
    if (strip(std::string_view(text).substr(begin), Side::kLeft).empty()) text.resize(begin);
  }

  /// Moves past a tag's end mark of two characters; `sign` stood before it. Blocks and comments
  /// take the line feed behind them (trim_blocks), "-" all white space.
  void end_tag(size_t position, char sign, bool trim) {
    if (sign == '-') {
      position = skip_space_from(position);
    } else if (trim && sign != '+' && position < source_.size() && source_[position] == '\n') {
      ++position;
    }
    line_starting_ = source_[position - 1] == '\n';
    advance_to(position);
  }

  void read_comment() {
    const size_t close = source_.find("#}", at_);
    if (close == std::string::npos) fail("a comment without its end '#}'");
    const char before = close > at_ ? source_[close - 1] : '\0';
    end_tag(close + 2, before == '-' || before == '+' ? before : '\0', true);
  }

  /// {% raw %} ... {% endraw %}; false when the block is another.
  bool read_raw() {
    const auto word = [&](size_t position, std::string_view name) -> size_t {
      position = skip_space_from(position);
      if (!std::string_view(source_).substr(position).starts_with(name)) return 0;
      return skip_space_from(position + name.size());
    };
    size_t position = word(at_, "raw");
    if (position == 0) return false;
    const bool strips = source_.compare(position, 3, "-%}") == 0;
    if (!strips && source_.compare(position, 2, "%}") != 0) return false;
    position += strips ? 3 : 2;
    advance_to(strips ? skip_space_from(position) : position);
    for (size_t open = at_;; ++open) {
      open = source_.find("{%", open);
      if (open == std::string::npos) fail("'raw' without 'endraw'");
      size_t inside = open + 2;
      char sign = '\0';
      if (inside < source_.size() && (source_[inside] == '-' || source_[inside] == '+')) {
        sign = source_[inside++];
      }
      size_t close = word(inside, "endraw");
      if (close == 0 || close >= source_.size()) continue;
      const char end_sign = source_[close] == '-' || source_[close] == '+' ? source_[close] : '\0';
      if (end_sign != '\0') ++close;
      if (source_.compare(close, 2, "%}") != 0) continue;
      std::string text = source_.substr(at_, open - at_);
      line_starting_ = false;
      strip_before_tag(text, sign, Tag::kBlock);
      if (!text.empty()) push(Token::Kind::kData, std::move(text));
      end_tag(close + 2, end_sign, true);
      return true;
    }
  }

  /// The inside of {{ }} or {% %}. Inside brackets "}}" and "%}" are no ends.
  void read_code(bool print) {
    const std::string_view end = print ? "}}" : "%}";
    const Token::Kind end_kind = print ? Token::Kind::kPrintEnd : Token::Kind::kBlockEnd;
    std::string brackets;
    while (true) {
      advance_to(skip_space_from(at_));
      if (at_ == source_.size()) fail("'" + std::string(print ? "{{" : "{%") + "' without its end");
      if (brackets.empty()) {
        const bool marked = source_[at_] == '-' || (!print && source_[at_] == '+');
        if (marked && std::string_view(source_).substr(at_ + 1).starts_with(end)) {
          push(end_kind, {});
          end_tag(at_ + 3, source_[at_], !print);
          return;
        }
        if (looking_at(end)) {
          push(end_kind, {});
          end_tag(at_ + 2, '\0', !print);
          return;
        }
      }
      const char c = source_[at_];
      if (is_name_start(c)) {
        read_name();
      } else if (is_digit(c)) {
        read_number();
      } else if (c == '\'' || c == '"') {
        read_string(c);
      } else {
        read_operator(brackets);
      }
    }
  }

  void read_name() {
    size_t end = at_;
    while (end < source_.size() && is_name_part(source_[end])) ++end;
    push(Token::Kind::kName, source_.substr(at_, end - at_));
    at_ = end;
  }

  void read_number() {
    size_t end = at_;
    const auto digits = [&] {
      const size_t begin = end;
      while (end < source_.size() &&
             (is_digit(source_[end]) || (source_[end] == '_' && end > begin))) {
        ++end;
      }
      return end > begin;
    };
    digits();
    bool real = false;
    // Behind a point, as in x.0.1, digits are an index and no fraction.
    const bool index = at_ > 0 && source_[at_ - 1] == '.';
    if (!index && end + 1 < source_.size() && source_[end] == '.' && is_digit(source_[end + 1])) {
      ++end;
      digits();
      real = true;
    }
    if (!index && end < source_.size() && (source_[end] | 0x20) == 'e') {
      const size_t before = end++;
      if (end < source_.size() && (source_[end] == '+' || source_[end] == '-')) ++end;
      if (digits()) {
        real = true;
      } else {
        end = before;
      }
    }
    std::string text = source_.substr(at_, end - at_);
    std::erase(text, '_');
    if (end < source_.size() && is_name_start(source_[end])) {
      fail("the number '" + printable(text, 40) + "' runs into a name");
    }
    push(real ? Token::Kind::kFloat : Token::Kind::kInteger, std::move(text));
    at_ = end;
  }

  void read_string(char quote) {
    size_t end = at_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) fail("a string without its closing quote");
    push(Token::Kind::kString, unescape(source_.substr(at_ + 1, end - at_ - 1)));
    advance_to(end + 1);
  }

  /// Python's "unicode-escape".
  std::string unescape(std::string_view text) const {
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] != '\\' || i + 1 == text.size()) {
        out += text[i];
        continue;
      }
      const char c = text[++i];
      constexpr std::string_view kNames = "abfnrtv\\'\"";
      constexpr std::string_view kCharacters = "\a\b\f\n\r\t\v\\'\"";
      if (const size_t known = kNames.find(c); known != std::string_view::npos) {
        out += kCharacters[known];
      } else if (c == '\n') {
        // An escaped line end is none.
      } else if (c == 'x' || c == 'u' || c == 'U') {
        const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        tokenizer::append_utf8(read_code_point(text.substr(i + 1), digits), out);
        i += digits;
      } else if (c >= '0' && c <= '7') {
        char32_t code = 0;
        size_t n = 0;
        while (n < 3 && i + n < text.size() && text[i + n] >= '0' && text[i + n] <= '7') {
          code = code * 8 + static_cast<char32_t>(text[i + n++] - '0');
        }
        tokenizer::append_utf8(code, out);
        i += n - 1;
      } else if (c == 'N') {
        fail("'\\N{...}' in a string is not supported");
      } else {
        out += '\\';
        out += c;
      }
    }
    return out;
  }

  char32_t read_code_point(std::string_view text, size_t digits) const {
    char32_t code = 0;
    for (size_t i = 0; i < digits; ++i) {
      const char c = i < text.size() ? text[i] : '\0';
      const char low = static_cast<char>(c | 0x20);
      if (is_digit(c)) {
        code = code * 16 + static_cast<char32_t>(c - '0');
      } else if (low >= 'a' && low <= 'f') {
        code = code * 16 + static_cast<char32_t>(low - 'a' + 10);
      } else {
        fail("an escape in a string without its hex digits");
      }
    }
    if (code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) {
      fail("an escape in a string that is no character");
    }
    return code;
  }

  void read_operator(std::string& brackets) {
    for (const std::string_view name : kOperators) {
      if (!looking_at(name)) continue;
      const char c = name[0];
      if (c == '(' || c == '[' || c == '{') brackets += c == '(' ? ')' : c == '[' ? ']' : '}';
      if (c == ')' || c == ']' || c == '}') {
        if (brackets.empty() || brackets.back() != c) {
          fail("'" + std::string(name) + "' closes nothing");
        }
        brackets.pop_back();
      }
      push(Token::Kind::kOperator, std::string(name));
      at_ += name.size();
      return;
    }
    size_t end = at_;
    next_character(source_, end);
    fail("unexpected character '" + printable(source_.substr(at_, end - at_)) + "'");
  }

  std::string source_;
  const std::string& where_;
  std::vector<Token> tokens_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
};

}  // namespace

std::vector<Token> tokenize_template(std::string_view source, const std::string& where) {
  if (!tokenizer::is_valid_utf8(source)) throw_invalid(where, "the chat template is not UTF-8");
  return Lexer(with_plain_newlines(source), where).run();
}

void throw_template_error(const std::string& where, int line, const std::string& what,
                          const std::string& hint) {
  throw_invalid(where, "chat template, line " + std::to_string(line) + ": " + what, hint);
}

}  // namespace llmctl::runtime::chat
