#include "runtime/chat/text.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdio>

#include "formats/core/error.h"
#include "runtime/tokenizer/unicode.h"

namespace llmctl::runtime::chat {

namespace {

/// str.isprintable() for one character.
bool is_printable(char32_t c) {
  if (c == ' ') return true;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    default:
      return true;
  }
}

/// Characters whose upper case is several characters (SpecialCasing.txt).
bool has_long_upper_case(char32_t c) {
  return c == 0xDF || c == 0x149 || c == 0x1F0 || c == 0x390 || c == 0x3B0 || c == 0x587 ||
         (c >= 0x1E96 && c <= 0x1E9A) || (c >= 0x1F50 && c <= 0x1F56) ||
         (c >= 0x1F80 && c <= 0x1FFC) || (c >= 0xFB00 && c <= 0xFB17);
}

[[noreturn]] void refuse_case(std::string_view character) {
  throw_invalid("chat template", "the other case of '" + std::string(character) +
                                     "' depends on more than the character");
}

}  // namespace

char32_t next_character(std::string_view text, size_t& position) {
  return tokenizer::next_code_point(text, position);
}

int64_t count_characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; });
}

std::vector<std::string> split_characters(std::string_view text) {
  std::vector<std::string> out;
  for (size_t position = 0; position < text.size();) {
    const size_t begin = position;
    next_character(text, position);
    out.emplace_back(text.substr(begin, position - begin));
  }
  return out;
}

bool is_python_space(char32_t c) {
  return tokenizer::is_white_space(c) || (c >= 0x1C && c <= 0x1F);
}

std::string strip(std::string_view text, Side side, const std::string* set) {
  const auto goes = [&](size_t begin, size_t end) {
    size_t position = begin;
    if (set == nullptr) return is_python_space(next_character(text, position));
    return set->find(text.substr(begin, end - begin)) != std::string::npos;
  };
  size_t first = 0, last = text.size();
  while (side != Side::kRight && first < last) {
    size_t end = first;
    next_character(text, end);
    if (!goes(first, end)) break;
    first = end;
  }
  while (side != Side::kLeft && first < last) {
    const size_t begin = tokenizer::character_before(text, last);
    if (!goes(begin, last)) break;
    last = begin;
  }
  return std::string(text.substr(first, last - first));
}

std::vector<std::string> split_at_space(std::string_view text, int64_t limit) {
  std::vector<std::string> out;
  size_t begin = 0;
  while (true) {
    const std::string rest = strip(text.substr(begin), Side::kLeft);
    begin = text.size() - rest.size();
    if (begin == text.size()) return out;
    if (limit >= 0 && static_cast<int64_t>(out.size()) >= limit) {
      out.push_back(rest);
      return out;
    }
    size_t end = begin;
    while (end < text.size()) {
      size_t next = end;
      if (is_python_space(next_character(text, next))) break;
      end = next;
    }
    out.emplace_back(text.substr(begin, end - begin));
    begin = end;
  }
}

std::vector<std::string> split_at(std::string_view text, std::string_view separator, int64_t limit,
                                  bool from_right) {
  std::vector<std::string> out;
  while (limit < 0 || static_cast<int64_t>(out.size()) < limit) {
    const size_t at = from_right ? text.rfind(separator) : text.find(separator);
    if (at == std::string_view::npos) break;
    if (from_right) {
      out.emplace_back(text.substr(at + separator.size()));
      text = text.substr(0, at);
    } else {
      out.emplace_back(text.substr(0, at));
      text.remove_prefix(at + separator.size());
    }
  }
  out.emplace_back(text);
  if (from_right) std::reverse(out.begin(), out.end());
  return out;
}

std::vector<std::string> split_lines(std::string_view text) {
  std::vector<std::string> out;
  size_t begin = 0;
  for (size_t position = 0; position < text.size();) {
    const size_t at = position;
    const char32_t c = next_character(text, position);
    const bool ends = (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 ||
                      c == 0x2028 || c == 0x2029;
    if (!ends) continue;
    out.emplace_back(text.substr(begin, at - begin));
    if (c == '\r' && position < text.size() && text[position] == '\n') ++position;
    begin = position;
  }
  if (begin < text.size()) out.emplace_back(text.substr(begin));
  return out;
}

std::string replace(std::string_view text, std::string_view from, std::string_view to,
                    int64_t limit) {
  std::string out;
  int64_t count = 0;
  if (from.empty()) {
    for (size_t position = 0;; ++count) {
      if (limit < 0 || count < limit) out += to;
      if (position == text.size()) return out;
      const size_t begin = position;
      next_character(text, position);
      out += text.substr(begin, position - begin);
    }
  }
  size_t begin = 0;
  for (; limit < 0 || count < limit; ++count) {
    const size_t at = text.find(from, begin);
    if (at == std::string_view::npos) break;
    out += text.substr(begin, at - begin);
    out += to;
    begin = at + from.size();
  }
  out += text.substr(begin);
  return out;
}

std::string to_case(std::string_view text, Case wanted) {
  std::string out;
  bool at_start = true;  // of the text, or of a word for title()
  for (size_t position = 0; position < text.size();) {
    const size_t begin = position;
    const char32_t c = next_character(text, position);
    const auto code = static_cast<utf8proc_int32_t>(c);
    const utf8proc_category_t category = utf8proc_category(code);
    const bool cased = category == UTF8PROC_CATEGORY_LU || category == UTF8PROC_CATEGORY_LL ||
                       category == UTF8PROC_CATEGORY_LT;
    const bool up = wanted == Case::kUpper || (wanted != Case::kLower && at_start);
    at_start = wanted == Case::kTitle ? !cased : false;
    if (up) {
      if (has_long_upper_case(c)) refuse_case(text.substr(begin, position - begin));
      tokenizer::append_utf8(static_cast<char32_t>(wanted == Case::kUpper ? utf8proc_toupper(code)
                                                                          : utf8proc_totitle(code)),
                             out);
    } else {
      if (c == 0x3A3) refuse_case(text.substr(begin, position - begin));  // final sigma
      tokenizer::append_lowercase(c, out);
    }
  }
  return out;
}

std::string python_repr(std::string_view text) {
  const bool double_quotes =
      text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos;
  const char quote = double_quotes ? '"' : '\'';
  std::string out(1, quote);
  for (size_t position = 0; position < text.size();) {
    const size_t begin = position;
    const char32_t c = next_character(text, position);
    if (c == '\\' || c == static_cast<char32_t>(quote)) {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c == '\n' || c == '\r' || c == '\t') {
      out += c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t";
    } else if (is_printable(c)) {
      out += text.substr(begin, position - begin);
    } else {
      std::array<char, 16> code;
      std::snprintf(code.data(), code.size(),
                    c < 0x100     ? "\\x%02x"
                    : c < 0x10000 ? "\\u%04x"
                                  : "\\U%08x",
                    static_cast<unsigned>(c));
      out += code.data();
    }
  }
  return out + quote;
}

}  // namespace llmctl::runtime::chat
