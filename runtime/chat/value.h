// The values that a chat template computes with, as Python has them.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace llmctl::runtime::chat {

class Value;
struct MacroDefinition;
struct LoopState;

struct List {
  std::vector<Value> items;
  bool is_tuple = false;
  int depth = 1;  ///< of nesting; set by Value
};

/// Keys in order of insertion. Keys are strings; templates of conversations have no others.
struct Dict {
  std::vector<std::pair<std::string, Value>> items;
  int depth = 1;  ///< of nesting; set by Value

  const Value* find(std::string_view key) const;
  void set(std::string key, Value value);
};

/// `namespace(...)`: the one thing a template can change in place.
struct Namespace {
  Dict attributes;
};

/// A name or key that was not there. Prints nothing, is false and empty, and may not be used for
/// anything else.
struct Undefined {
  std::string name;
};

struct None {};

/// Cheap to copy: what is large is shared and immutable. Not thread-safe through Namespace.
class Value {
 public:
  Value() : data_(None{}) {}
  Value(bool value) : data_(value) {}     // NOLINT: literals read as values
  Value(int64_t value) : data_(value) {}  // NOLINT
  Value(double value) : data_(value) {}   // NOLINT
  Value(std::string value)                // NOLINT
      : data_(std::make_shared<const std::string>(std::move(value))) {}
  Value(const char* value) : Value(std::string(value)) {}  // NOLINT
  // Throw kInvalidInput for values nested deeper than 200.
  Value(List value);                                                                // NOLINT
  Value(Dict value);                                                                // NOLINT
  Value(std::shared_ptr<Namespace> value) : data_(std::move(value)) {}              // NOLINT
  Value(std::shared_ptr<const MacroDefinition> value) : data_(std::move(value)) {}  // NOLINT
  Value(std::shared_ptr<LoopState> value) : data_(std::move(value)) {}              // NOLINT
  Value(Undefined value) : data_(std::move(value)) {}                               // NOLINT

  static Value from_json(const nlohmann::ordered_json& json);

  bool is_undefined() const { return std::holds_alternative<Undefined>(data_); }
  bool is_none() const { return std::holds_alternative<None>(data_); }
  bool is_bool() const { return std::holds_alternative<bool>(data_); }
  /// int, or bool, which Python counts as one.
  bool is_int() const { return is_bool() || std::holds_alternative<int64_t>(data_); }
  bool is_float() const { return std::holds_alternative<double>(data_); }
  bool is_number() const { return is_int() || is_float(); }
  bool is_string() const { return string_ptr() != nullptr; }
  bool is_list() const { return list() != nullptr; }  ///< or tuple
  bool is_dict() const { return dict() != nullptr; }

  /// Null when it is something else.
  const std::string* string_ptr() const { return shared<const std::string>(); }
  const List* list() const { return shared<const List>(); }
  const Dict* dict() const { return shared<const Dict>(); }
  Namespace* name_space() const { return shared<Namespace>(); }
  const MacroDefinition* macro() const { return shared<const MacroDefinition>(); }
  LoopState* loop() const { return shared<LoopState>(); }
  /// Requires: is_int().
  int64_t integer() const;
  /// Requires: is_number().
  double real() const;
  /// Requires: is_string().
  const std::string& string() const { return *string_ptr(); }
  const std::string& undefined_name() const { return std::get<Undefined>(data_).name; }

  /// bool(x).
  bool truthy() const;
  /// type(x).__name__, for messages.
  std::string type_name() const;

 private:
  template <typename T>
  T* shared() const {
    const auto* pointer = std::get_if<std::shared_ptr<T>>(&data_);
    return pointer == nullptr ? nullptr : pointer->get();
  }

  std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const std::string>,
               std::shared_ptr<const List>, std::shared_ptr<const Dict>, std::shared_ptr<Namespace>,
               std::shared_ptr<const MacroDefinition>, std::shared_ptr<LoopState>>
      data_;
};

/// a == b. Nothing equals a value of another kind, but numbers.
bool equal(const Value& a, const Value& b);

/// Sign of a - b for numbers, strings, and lists of these; nothing where Python has no order.
std::optional<int> compare(const Value& a, const Value& b);

/// str(x): what {{ x }} prints. `undefined` prints nothing.
std::string to_text(const Value& value);
/// repr(x).
std::string to_repr(const Value& value);

struct JsonStyle {
  std::optional<int64_t> indent;
  std::string item_separator = ", ", key_separator = ": ";
  bool ensure_ascii = false, sort_keys = false;
};
/// json.dumps(x). Nothing when `value` has no JSON (undefined, a macro, ...).
std::optional<std::string> to_json(const Value& value, const JsonStyle& style);

}  // namespace llmctl::runtime::chat
