// What filters, tests and methods need of the interpreter that runs a chat template.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/chat/value.h"

namespace llmctl::runtime::chat {

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

/// The state of `loop` inside a for.
struct LoopState {
  std::vector<Value> items;
  size_t index = 0;
};

/// One rendering: where it stands, and how much it may still do. Not thread-safe.
class Machine {
 public:
  /// `where` names the template in errors and must outlive the machine.
  explicit Machine(const std::string& where) : where_(where) {}

  void set_line(int line) { line_ = line; }

  /// Throws kInvalidInput with the template and the line.
  [[noreturn]] void fail(const std::string& what, const std::string& hint = {}) const;

  /// Accounts for one step that makes `bytes` of text or as many items times 16. Throws
  /// kInvalidInput when the template has done more than any conversation needs.
  void charge(size_t bytes = 0);

  /// iter(value): the items of a list, keys of a dict, characters of a string, nothing of an
  /// undefined value. Fails for anything else.
  std::vector<Value> iterate(const Value& value);

  /// value.name and value[key] as jinja2 looks them up; undefined when there is none. Fails on an
  /// undefined value, and where Python would hand out a method.
  Value attribute(const Value& value, const std::string& name) const;
  Value item(const Value& value, const Value& key) const;

  /// `arguments` in the order of `parameters`. Fails, naming `what`, for more of them, or others.
  std::vector<std::optional<Value>> bind(const std::string& what, const Arguments& arguments,
                                         const std::vector<std::string_view>& parameters) const;

  /// The string that `value` is. Fails, naming `what`, for another type.
  const std::string& need_string(const Value& value, const std::string& what) const;
  int64_t need_integer(const Value& value, const std::string& what) const;

  /// A string made by the template.
  Value text(std::string value);
  Value list(std::vector<Value> items, bool is_tuple = false);

 private:
  const std::string& where_;
  int line_ = 1;
  size_t spent_ = 0;
};

}  // namespace llmctl::runtime::chat
