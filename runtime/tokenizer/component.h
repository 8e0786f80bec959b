// One component's JSON together with its place in the file, so that every refusal names both.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace llmctl::runtime::tokenizer {

using Json = nlohmann::ordered_json;

/// A view of a JSON object that must be read strictly. The JSON must outlive it. All getters throw
/// kInvalidInput, naming the place, for a value of the wrong kind.
class Component {
 public:
  Component(const Json& value, std::string where);

  const Json& json() const { return value_; }
  const std::string& where() const { return where_; }

  /// Is `key` there and not null?
  bool has(const std::string& key) const;
  /// The string under "type".
  std::string type() const { return text("type"); }
  bool flag(const std::string& key, bool fallback) const;
  std::string text(const std::string& key) const;
  std::string text_or(const std::string& key, const std::string& fallback) const;
  int64_t size(const std::string& key) const;
  /// The object under `key`; refuses an absent one.
  Component child(const std::string& key) const;
  /// The objects of the array under `key`; refuses an absent one.
  std::vector<Component> children(const std::string& key) const;

  [[noreturn]] void refuse(const std::string& what, const std::string& hint = {}) const;
  /// Throws that this `role` ("normalizer", ...) of type `type()` is not supported.
  [[noreturn]] void refuse_type(const std::string& role) const;

 private:
  const Json& value_;
  std::string where_;
};

}  // namespace llmctl::runtime::tokenizer
