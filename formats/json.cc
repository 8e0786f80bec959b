#include "formats/json.h"

#include <set>
#include <vector>

#include "formats/core/error.h"

namespace llmctl::formats {

using nlohmann::ordered_json;

ordered_json parse_json(std::string_view text, const std::string& where) {
  constexpr int kMaxDepth = 64;
  // The library takes a zero byte for the end of the text and would ignore what follows.
  if (text.find('\0') != std::string_view::npos)
    throw_invalid(where, "not valid JSON: a zero byte");
  // `depth` counts the containers that are already open.
  const auto check_depth = [&](int depth) {
    if (depth >= kMaxDepth) throw_invalid(where, "JSON nested deeper than 64 levels");
  };
  // One set of seen keys per open object; the library itself would keep the last duplicate.
  std::vector<std::set<std::string>> keys;
  const auto callback = [&](int depth, ordered_json::parse_event_t event, ordered_json& value) {
    switch (event) {
      case ordered_json::parse_event_t::object_start:
        check_depth(depth);
        keys.emplace_back();
        break;
      case ordered_json::parse_event_t::array_start:
        check_depth(depth);
        break;
      case ordered_json::parse_event_t::object_end:
        keys.pop_back();
        break;
      case ordered_json::parse_event_t::key:
        if (!keys.back().insert(value.get<std::string>()).second) {
          throw_invalid(where, "duplicate JSON key '" + printable(value.get<std::string>()) + "'");
        }
        break;
      default:
        break;
    }
    return true;
  };
  try {
    return ordered_json::parse(text.begin(), text.end(), callback);
  } catch (const nlohmann::json::exception& e) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ...": the first word is
    // for programmers.
    const std::string what = e.what();
    const size_t start = what.find("] ");
    throw_invalid(where, "not valid JSON: " +
                             printable(start == std::string::npos ? what : what.substr(start + 2)));
  }
}

int64_t get_size(const ordered_json& value, const std::string& where, const std::string& name) {
  if (!value.is_number_integer() ||
      (value.is_number_unsigned() ? value.get<uint64_t>() > INT64_MAX : value.get<int64_t>() < 0)) {
    throw_invalid(
        where, "'" + name + "' must be a non-negative integer, not " + printable(value.dump(), 60));
  }
  return value.get<int64_t>();
}

}  // namespace llmctl::formats
