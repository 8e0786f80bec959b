// Strict JSON for files that cannot be trusted.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace llmctl::formats {

/// Parses `text`. Refuses (kInvalidInput, naming `where`) malformed input, duplicate keys, and
/// nesting deeper than 64. Never recurses on the input's depth beyond that. Time and memory are
/// linear in the text; looking a key up in the result is linear in the object's members.
nlohmann::ordered_json parse_json(std::string_view text, const std::string& where);

/// A non-negative integer that fits int64_t; kInvalidInput otherwise (negative, fractional,
/// boolean, text). `name` is the key for the message.
int64_t get_size(const nlohmann::ordered_json& value, const std::string& where,
                 const std::string& name);

/// Members of a parsed object, each checked for its kind. Refers to the object.
class JsonFields {
 public:
  /// `where` and `hint` are for the messages. Throws kInvalidInput, as all below, for what is no
  /// object.
  JsonFields(const nlohmann::ordered_json& object, std::string where, std::string hint);

  const nlohmann::ordered_json& get(const char* key) const;
  const nlohmann::ordered_json& list(const char* key) const;
  double number(const char* key) const;
  int64_t size(const char* key) const;
  std::string text(const char* key) const;
  /// The fields of another object of the same document.
  JsonFields below(const nlohmann::ordered_json& object) const { return {object, where_, hint_}; }
  [[noreturn]] void refuse(const std::string& what) const;

 private:
  const nlohmann::ordered_json& object_;
  std::string where_, hint_;
};

}  // namespace llmctl::formats
