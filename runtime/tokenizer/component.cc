#include "runtime/tokenizer/component.h"

#include <utility>

#include "formats/core/error.h"
#include "formats/json.h"

namespace llmctl::runtime::tokenizer {

Component::Component(const Json& value, std::string where)
    : value_(value), where_(std::move(where)) {
  if (!value_.is_object()) refuse("an object expected, not " + std::string(value_.type_name()));
}

bool Component::has(const std::string& key) const {
  const auto found = value_.find(key);
  return found != value_.end() && !found->is_null();
}

bool Component::flag(const std::string& key, bool fallback) const {
  if (!has(key)) return fallback;
  const Json& value = value_.at(key);
  if (!value.is_boolean()) refuse("'" + key + "' must be true or false");
  return value.get<bool>();
}

std::string Component::text(const std::string& key) const {
  if (!has(key) || !value_.at(key).is_string()) refuse("'" + key + "' must be a string");
  return value_.at(key).get<std::string>();
}

std::string Component::text_or(const std::string& key, const std::string& fallback) const {
  return has(key) ? text(key) : fallback;
}

int64_t Component::size(const std::string& key) const {
  if (!has(key)) refuse("'" + key + "' is missing");
  return formats::get_size(value_.at(key), where_, key);
}

Component Component::child(const std::string& key) const {
  if (!has(key)) refuse("'" + key + "' is missing");
  return {value_.at(key), where_ + "." + key};
}

std::vector<Component> Component::children(const std::string& key) const {
  if (!has(key) || !value_.at(key).is_array()) refuse("'" + key + "' must be a list");
  std::vector<Component> out;
  for (const Json& item : value_.at(key)) {
    out.emplace_back(item, where_ + "." + key + "[" + std::to_string(out.size()) + "]");
  }
  return out;
}

void Component::refuse(const std::string& what, const std::string& hint) const {
  throw_invalid(where_, what, hint);
}

void Component::refuse_type(const std::string& role) const {
  refuse(role + " type '" + printable(type(), 60) + "' is not supported",
         "docs/tokenizers.md lists the types that are");
}

}  // namespace llmctl::runtime::tokenizer
