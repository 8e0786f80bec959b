#include "runtime/tokenizer/regex_syntax.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <optional>
#include <vector>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "formats/core/error.h"
#include "runtime/tokenizer/unicode.h"

namespace llmctl::runtime::tokenizer {

namespace {

// Contents of character classes. Oniguruma's \s is White_Space; PCRE2's also has U+180E. Its \w is
// Alphabetic, M, Nd, Pc; PCRE2's is L, N and the underscore.
constexpr std::string_view kSpace = R"(\x{9}-\x{d}\x{85}\p{Z})";
constexpr std::string_view kNotSpace =
    R"(\x{0}-\x{8}\x{e}-\x{1f}\x{21}-\x{84}\x{86}-\x{9f}\x{a1}-\x{167f}\x{1681}-\x{1fff})"
    R"(\x{200b}-\x{2027}\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{10ffff})";
constexpr std::string_view kWord = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})";

constexpr std::array<std::string_view, 37> kCategories = {
    "C",  "Cc", "Cf", "Cn", "Co", "Cs", "L",  "Ll", "Lm", "Lo", "Lt", "Lu", "M",
    "Mc", "Me", "Mn", "N",  "Nd", "Nl", "No", "P",  "Pc", "Pd", "Pe", "Pf", "Pi",
    "Po", "Ps", "S",  "Sc", "Sk", "Sm", "So", "Z",  "Zl", "Zp", "Zs"};
constexpr std::array<std::string_view, 25> kScripts = {
    "Arabic",   "Armenian", "Bengali", "Cyrillic",  "Devanagari", "Georgian", "Greek",
    "Gujarati", "Gurmukhi", "Han",     "Hangul",    "Hebrew",     "Hiragana", "Katakana",
    "Khmer",    "Lao",      "Latin",   "Malayalam", "Mongolian",  "Myanmar",  "Sinhala",
    "Tamil",    "Telugu",   "Thai",    "Tibetan"};

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_alphanumeric(char c) {
  return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

class Translator {
 public:
  Translator(std::string_view pattern, const std::string& where)
      : pattern_(pattern), where_(where) {}

  std::string run() {
    while (!at_end()) step();
    if (!groups_.empty()) refuse("unbalanced '('");
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(const std::string& construct) const {
    throw_invalid(where_, "regular expression '" + printable(std::string(pattern_)) +
                              "': " + construct + " at byte " + std::to_string(position_) +
                              " is not supported");
  }

  bool at_end() const { return position_ >= pattern_.size(); }
  char peek(size_t ahead = 0) const {
    return position_ + ahead < pattern_.size() ? pattern_[position_ + ahead] : '\0';
  }
  bool take(std::string_view text) {
    if (pattern_.substr(position_).substr(0, text.size()) != text) return false;
    position_ += text.size();
    return true;
  }

  void begin_atom() { atom_ = out_.size(); }

  void append_literal(char32_t c) {
    if (c >= 0x80 || is_alphanumeric(static_cast<char>(c))) {
      append_utf8(c, out_);
    } else {
      append_hex(c);
    }
  }
  void append_hex(char32_t c) {
    std::array<char, 16> text;
    std::snprintf(text.data(), text.size(), "\\x{%x}", static_cast<unsigned>(c));
    out_ += text.data();
  }

  void step() {
    switch (peek()) {
      case '(':
        open_group();
        return;
      case ')':
        if (groups_.empty()) refuse("unbalanced ')'");
        out_ += ')';
        ++position_;
        atom_ = groups_.back();
        groups_.pop_back();
        return;
      case '[':
        begin_atom();
        ++position_;
        out_ += '[';
        if (take("^")) out_ += '^';
        class_items();
        out_ += ']';
        return;
      case '\\':
        escape();
        return;
      case '*':
      case '+':
      case '?':
        simple_quantifier();
        return;
      case '{':
        if (!interval()) literal();
        return;
      case '|':
      case '^':
      case '$':
        out_ += peek();
        ++position_;
        atom_.reset();
        return;
      case '.':
        begin_atom();
        out_ += '.';
        ++position_;
        return;
      default:
        literal();
    }
  }

  void literal() {
    begin_atom();
    append_literal(next_code_point(pattern_, position_));
  }

  void open_group() {
    const bool first_in_group =
        out_.empty() || (!groups_.empty() && out_.size() == groups_.back() + 3);
    // A capture is not needed: only the bounds of the whole match are used.
    static constexpr std::array<std::string_view, 8> kOpeners = {
        "(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?-i:"};
    if (take("(?i)")) {
      // Elsewhere Ruby's flag also changes how the alternatives after it group.
      if (!first_in_group) refuse("'(?i)' in the middle of a group");
      out_ += "(?i)";
      atom_.reset();
      return;
    }
    for (const std::string_view opener : kOpeners) {
      if (!take(opener)) continue;
      groups_.push_back(out_.size());
      out_ += opener;
      atom_.reset();
      return;
    }
    if (peek(1) == '?' || peek(1) == '*') refuse("this kind of group");
    ++position_;
    groups_.push_back(out_.size());
    out_ += "(?:";
    atom_.reset();
  }

  void simple_quantifier() {
    if (!atom_) refuse("a quantifier with nothing to repeat");
    out_ += peek();
    ++position_;
    // Ruby reads '?' after a quantifier as reluctant and '+' as possessive, like PCRE2.
    if (peek() == '?' || peek() == '+') {
      out_ += peek();
      ++position_;
    }
    atom_.reset();
  }

  /// {n}, {n,}, {n,m} or {,m}; false when the brace is literal.
  bool interval() {
    size_t p = position_ + 1;
    const auto number = [&] {
      std::string digits;
      while (p < pattern_.size() && is_digit(pattern_[p])) digits += pattern_[p++];
      return digits;
    };
    const std::string low = number();
    const bool comma = p < pattern_.size() && pattern_[p] == ',';
    if (comma) ++p;
    const std::string high = comma ? number() : low;
    if (p >= pattern_.size() || pattern_[p] != '}' || (low.empty() && high.empty())) return false;
    if (!atom_) refuse("a quantifier with nothing to repeat");
    position_ = p + 1;
    out_ += '{' + (low.empty() ? "0" : low) + (comma ? "," + high : "") + '}';
    // Ruby has no possessive interval and no reluctant {n}: there the sign repeats the whole.
    if (peek() == '+' || (peek() == '?' && !comma)) {
      out_.insert(*atom_, "(?:");
      out_ += ')';
      out_ += peek();
      ++position_;
    } else if (peek() == '?') {
      out_ += '?';
      ++position_;
    }
    atom_.reset();
    return true;
  }

  /// \p{Name}, \P{Name} or \p{^Name}; `position_` is behind the p.
  std::string property(bool negated) {
    if (peek() != '{') refuse("a property without braces");
    const size_t close = pattern_.find('}', position_);
    if (close == std::string_view::npos) refuse("an unclosed property");
    std::string_view name = pattern_.substr(position_ + 1, close - position_ - 1);
    if (!name.empty() && name.front() == '^') {
      negated = !negated;
      name.remove_prefix(1);
    }
    std::string text(name);
    if (std::find(kScripts.begin(), kScripts.end(), name) != kScripts.end()) {
#if PCRE2_MAJOR > 10 || (PCRE2_MAJOR == 10 && PCRE2_MINOR >= 40)
      text = "sc:" + text;  // a bare name means Script_Extensions there
#endif
    } else if (std::find(kCategories.begin(), kCategories.end(), name) == kCategories.end()) {
      refuse("property '" + printable(text, 40) + "'");
    }
    position_ = close + 1;
    return (negated ? "\\P{" : "\\p{") + text + "}";
  }

  std::optional<char32_t> hex(size_t min_digits, size_t max_digits) {
    char32_t value = 0;
    size_t digits = 0;
    for (; digits < max_digits; ++digits, ++position_) {
      const char c = peek();
      if (is_digit(c)) {
        value = value * 16 + static_cast<char32_t>(c - '0');
      } else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f') {
        value = value * 16 + static_cast<char32_t>((c | 0x20) - 'a' + 10);
      } else {
        break;
      }
    }
    if (digits < min_digits || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) {
      return std::nullopt;
    }
    return value;
  }

  /// The one character that an escape stands for, if it does; `position_` is behind the backslash.
  std::optional<char32_t> escaped_character() {
    const char c = peek();
    if (at_end()) refuse("a trailing backslash");
    if (!is_alphanumeric(c)) return next_code_point(pattern_, position_);
    static constexpr std::string_view kNames = "nrtfvae";
    static constexpr std::string_view kValues = "\n\r\t\f\v\a\x1b";
    if (const size_t i = kNames.find(c); i != std::string_view::npos) {
      ++position_;
      return static_cast<char32_t>(kValues[i]);
    }
    if (c == 'u' || c == 'x') {
      ++position_;
      std::optional<char32_t> value;
      if (c == 'x' && take("{")) {
        value = hex(1, 8);
        if (!take("}")) value.reset();
      } else if (c == 'x') {
        value = hex(1, 2);
        if (value && *value >= 0x80) refuse("a byte above \\x7f");
      } else {
        value = hex(4, 4);
      }
      if (!value) refuse("this escape");
      return value;
    }
    return std::nullopt;
  }

  void escape() {
    ++position_;
    begin_atom();
    if (const std::optional<char32_t> c = escaped_character()) {
      append_literal(*c);
      return;
    }
    const char c = peek();
    ++position_;
    const std::string word(kWord), space(kSpace);
    switch (c) {
      case 's':
        out_ += "[" + space + "]";
        return;
      case 'S':
        out_ += "[^" + space + "]";
        return;
      case 'w':
        out_ += "[" + word + "]";
        return;
      case 'W':
        out_ += "[^" + word + "]";
        return;
      case 'd':
        out_ += "\\p{Nd}";
        return;
      case 'D':
        out_ += "\\P{Nd}";
        return;
      case 'p':
      case 'P':
        out_ += property(c == 'P');
        return;
      case 'b':
        out_ += "(?:(?<=[" + word + "])(?![" + word + "])|(?<![" + word + "])(?=[" + word + "]))";
        return;
      case 'B':
        out_ += "(?:(?<=[" + word + "])(?=[" + word + "])|(?<![" + word + "])(?![" + word + "]))";
        return;
      case 'A':
      case 'z':
      case 'Z':
        out_ += '\\';
        out_ += c;
        atom_.reset();
        return;
      default:
        refuse(std::string("'\\") + c + "'");
    }
  }

  /// The items of a class up to and with its ']', appended without brackets: Oniguruma's nested
  /// class is a union, so its items belong to the class around it.
  void class_items() {
    if (peek() == ']') refuse("']' as the first item of a class");
    while (true) {
      if (at_end()) refuse("an unclosed class");
      if (take("]")) return;
      if (peek() == '[') {
        if (peek(1) == ':') refuse("a POSIX bracket");
        if (peek(1) == '^') refuse("a negated class inside a class");
        if (++depth_ > 16) refuse("a class nested deeper than 16 levels");
        ++position_;
        class_items();
        --depth_;
        continue;
      }
      if (peek() == '&' && peek(1) == '&') refuse("'&&' in a class");
      const std::optional<char32_t> low = class_character();
      if (!low) continue;
      append_literal(*low);
      if (peek() != '-' || peek(1) == ']' || peek(1) == '\0') continue;
      ++position_;
      if (peek() == '[') refuse("a class as the end of a range");
      const std::optional<char32_t> high = class_character();
      if (!high) refuse("a class as the end of a range");
      if (*high < *low) refuse("a range that runs backwards");
      out_ += '-';
      append_literal(*high);
    }
  }

  /// One character of a class, or nothing when it was a set (then appended).
  std::optional<char32_t> class_character() {
    if (peek() != '\\') return next_code_point(pattern_, position_);
    ++position_;
    if (const std::optional<char32_t> c = escaped_character()) return c;
    const char c = peek();
    ++position_;
    switch (c) {
      case 's':
        out_ += kSpace;
        break;
      case 'S':
        out_ += kNotSpace;
        break;
      case 'w':
        out_ += kWord;
        break;
      case 'd':
        out_ += "\\p{Nd}";
        break;
      case 'D':
        out_ += "\\P{Nd}";
        break;
      case 'p':
      case 'P':
        out_ += property(c == 'P');
        break;
      default:
        refuse(std::string("'\\") + c + "' in a class");
    }
    return std::nullopt;
  }

  std::string_view pattern_;
  const std::string& where_;
  size_t position_ = 0;
  std::string out_;
  /// Where in `out_` the thing that a quantifier would repeat begins.
  std::optional<size_t> atom_;
  std::vector<size_t> groups_;
  int depth_ = 0;
};

}  // namespace

std::string pcre2_from_oniguruma(std::string_view pattern, const std::string& where) {
  return Translator(pattern, where).run();
}

}  // namespace llmctl::runtime::tokenizer
