#include "formats/ini.h"

#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <utility>

#include "formats/core/error.h"

namespace llmctl::formats {
namespace {

// ASCII only, whatever the locale says: isspace of the C locale.
bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

std::string_view trim(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return out;
}

std::string make_key(std::string_view section, std::string_view key) {
  return lower(section) + '\n' + lower(key);
}

/// Index of the first byte in `stops`, or of a `;` after white space, or the end.
size_t find_stop_or_comment(std::string_view text, std::string_view stops) {
  bool was_space = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (stops.find(text[i]) != std::string_view::npos) return i;
    if (was_space && text[i] == ';') return i;
    was_space = is_space(text[i]);
  }
  return text.size();
}

std::string_view without_comment(std::string_view text) {
  return trim(text.substr(0, find_stop_or_comment(text, "")));
}

}  // namespace

Ini Ini::parse(std::string_view text, std::string where) {
  Ini ini(std::move(where));
  if (text.substr(0, 3) == "\xEF\xBB\xBF") text.remove_prefix(3);
  std::string section;
  std::string* previous = nullptr;
  for (int64_t number = 1; !text.empty(); ++number) {
    const size_t length = text.find('\n');
    const std::string_view raw = text.substr(0, length);
    text.remove_prefix(length == std::string_view::npos ? text.size() : length + 1);
    const auto fail = [&](const std::string& what) {
      throw_invalid(ini.where_, "line " + std::to_string(number) + ": " + what);
    };
    if (raw.find('\0') != std::string_view::npos) fail("a zero byte");
    const std::string_view line = trim(raw);
    if (line.empty() || line.front() == ';' || line.front() == '#') continue;
    if (previous != nullptr && is_space(raw.front())) {
      *previous += (previous->empty() ? "" : "\n") + std::string(without_comment(line));
    } else if (line.front() == '[') {
      const std::string_view rest = line.substr(1);
      const size_t end = find_stop_or_comment(rest, "]");
      if (end == rest.size() || rest[end] != ']') fail("a section without ']'");
      section = std::string(rest.substr(0, end));
      previous = nullptr;
      if (ini.section_names_.insert(lower(section)).second) ini.sections_.push_back(section);
    } else {
      const size_t end = find_stop_or_comment(line, "=:");
      if (end == line.size() || line[end] == ';') {
        fail("'" + printable(std::string(line), 60) + "' is neither a section nor 'key = value'");
      }
      const std::string_view key = trim(line.substr(0, end));
      if (ini.sections_.empty()) {
        fail("'" + printable(std::string(key), 60) + "' stands before the first section");
      }
      const auto [place, is_new] = ini.values_.emplace(
          make_key(section, key), std::string(without_comment(trim(line.substr(end + 1)))));
      if (!is_new) fail("'" + printable(std::string(key), 60) + "' is given twice");
      previous = &place->second;
    }
  }
  return ini;
}

bool Ini::has_section(std::string_view section) const {
  return section_names_.count(lower(section)) > 0;
}

void Ini::refuse(std::string_view section, std::string_view key, const std::string& what) const {
  throw_invalid(where_, "[" + std::string(section) + "] " + std::string(key) + ": " + what);
}

std::optional<std::string> Ini::find(std::string_view section, std::string_view key) const {
  const auto found = values_.find(make_key(section, key));
  if (found == values_.end()) return std::nullopt;
  return found->second;
}

std::optional<int64_t> Ini::find_integer(std::string_view section, std::string_view key) const {
  const auto text = find(section, key);
  if (!text) return std::nullopt;
  errno = 0;
  char* end = nullptr;
  const int64_t value = std::strtoll(text->c_str(), &end, 0);
  if (end == text->c_str() || errno != 0 || (*end != '\0' && !is_space(*end))) {
    refuse(section, key, "'" + printable(*text, 60) + "' is not an integer");
  }
  return value;
}

std::optional<double> Ini::find_real(std::string_view section, std::string_view key) const {
  const auto text = find(section, key);
  if (!text) return std::nullopt;
  // from_chars rather than strtod: a locale with a decimal comma must not change the value.
  const char* begin = text->data();
  const char* end = begin + text->size();
  if (begin != end && *begin == '+') ++begin;
  double value = 0;
  const auto [stop, error] = std::from_chars(begin, end, value);
  if (error != std::errc() || (stop != end && !is_space(*stop))) {
    refuse(section, key, "'" + printable(*text, 60) + "' is not a number");
  }
  return value;
}

std::optional<bool> Ini::find_bool(std::string_view section, std::string_view key) const {
  const auto text = find(section, key);
  if (!text) return std::nullopt;
  const std::string word = lower(*text);
  if (word == "true" || word == "yes" || word == "on" || word == "1") return true;
  if (word == "false" || word == "no" || word == "off" || word == "0") return false;
  refuse(section, key, "'" + printable(*text, 60) + "' is neither True nor False");
}

std::string Ini::get(std::string_view section, std::string_view key) const {
  const auto text = find(section, key);
  if (!text) refuse(section, key, "missing");
  return *text;
}

int64_t Ini::get_integer(std::string_view section, std::string_view key) const {
  const auto value = find_integer(section, key);
  if (!value) refuse(section, key, "missing");
  return *value;
}

}  // namespace llmctl::formats
