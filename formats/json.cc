#include "formats/json.h"

#include <unordered_set>
#include <utility>
#include <vector>

#include "formats/core/error.h"

namespace llmctl::formats {

using nlohmann::ordered_json;

namespace {

/// "[json.exception.parse_error.101] parse error at line 1, column 2: ...": the first word is for
/// programmers.
std::string plain_message(const std::string& what) {
  const size_t start = what.find("] ");
  return "not valid JSON: " + printable(start == std::string::npos ? what : what.substr(start + 2));
}

/// Builds the document from the library's events. Its own builder looks every key of an object up
/// among those before it, so that a file of a megabyte can keep it busy for minutes; and it keeps
/// the last of equal keys.
class Builder final : public nlohmann::json_sax<ordered_json> {
 public:
  explicit Builder(const std::string& where) : where_(where) {}

  ordered_json take() { return std::move(root_); }

  bool null() override { return put(nullptr); }
  bool boolean(bool value) override { return put(value); }
  bool number_integer(number_integer_t value) override { return put(value); }
  bool number_unsigned(number_unsigned_t value) override { return put(value); }
  bool number_float(number_float_t value, const string_t&) override { return put(value); }
  bool string(string_t& value) override { return put(std::move(value)); }
  bool binary(binary_t& value) override { return put(std::move(value)); }

  bool start_object(size_t) override { return open(ordered_json::object()); }
  bool end_object() override { return close(); }
  bool start_array(size_t) override { return open(ordered_json::array()); }
  bool end_array() override { return close(); }

  bool key(string_t& value) override {
    Level& level = levels_.back();
    if (!level.keys.insert(value).second) {
      throw_invalid(where_, "duplicate JSON key '" + printable(value) + "'");
    }
    level.key = std::move(value);
    return true;
  }

  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& error) override {
    throw_invalid(where_, plain_message(error.what()));
  }

 private:
  struct Level {
    ordered_json value;
    std::string key;  // of the member that comes next
    std::unordered_set<std::string> keys;
  };

  bool put(ordered_json value) {
    if (levels_.empty()) {
      root_ = std::move(value);
      return true;
    }
    Level& level = levels_.back();
    if (level.value.is_array()) {
      level.value.get_ref<ordered_json::array_t&>().push_back(std::move(value));
    } else {
      // As the vector that it is: the map's own insertion searches.
      std::vector<ordered_json::object_t::value_type>& members =
          level.value.get_ref<ordered_json::object_t&>();
      members.emplace_back(std::move(level.key), std::move(value));
    }
    return true;
  }

  bool open(ordered_json container) {
    constexpr size_t kMaxDepth = 64;
    if (levels_.size() == kMaxDepth) throw_invalid(where_, "JSON nested deeper than 64 levels");
    levels_.push_back({std::move(container), {}, {}});
    return true;
  }

  bool close() {
    ordered_json value = std::move(levels_.back().value);
    levels_.pop_back();
    return put(std::move(value));
  }

  const std::string& where_;
  ordered_json root_;
  std::vector<Level> levels_;
};

}  // namespace

ordered_json parse_json(std::string_view text, const std::string& where) {
  // The library takes a zero byte for the end of the text and would ignore what follows.
  if (text.find('\0') != std::string_view::npos) {
    throw_invalid(where, "not valid JSON: a zero byte");
  }
  Builder builder(where);
  ordered_json::sax_parse(text.begin(), text.end(), &builder);
  return builder.take();
}

int64_t get_size(const ordered_json& value, const std::string& where, const std::string& name) {
  if (!value.is_number_integer() ||
      (value.is_number_unsigned() ? value.get<uint64_t>() > INT64_MAX : value.get<int64_t>() < 0)) {
    throw_invalid(
        where, "'" + name + "' must be a non-negative integer, not " + printable(value.dump(), 60));
  }
  return value.get<int64_t>();
}

JsonFields::JsonFields(const ordered_json& object, std::string where, std::string hint)
    : object_(object), where_(std::move(where)), hint_(std::move(hint)) {
  if (!object.is_object()) refuse("an object is expected");
}

const ordered_json& JsonFields::get(const char* key) const {
  const auto it = object_.find(key);
  if (it == object_.end()) refuse("'" + std::string(key) + "' is missing");
  return *it;
}

const ordered_json& JsonFields::list(const char* key) const {
  const ordered_json& value = get(key);
  if (!value.is_array()) refuse("'" + std::string(key) + "' is no list");
  return value;
}

double JsonFields::number(const char* key) const {
  const ordered_json& value = get(key);
  if (!value.is_number()) refuse("'" + std::string(key) + "' is no number");
  return value.get<double>();
}

int64_t JsonFields::size(const char* key) const { return get_size(get(key), where_, key); }

std::string JsonFields::text(const char* key) const {
  const ordered_json& value = get(key);
  if (!value.is_string()) refuse("'" + std::string(key) + "' is no text");
  return value.get<std::string>();
}

void JsonFields::refuse(const std::string& what) const { throw_invalid(where_, what, hint_); }

}  // namespace llmctl::formats
