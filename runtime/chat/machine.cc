#include "runtime/chat/machine.h"

#include <algorithm>
#include <array>
#include <span>

#include "formats/core/error.h"
#include "runtime/chat/lexer.h"
#include "runtime/chat/text.h"

namespace llmctl::runtime::chat {

namespace {

// A step costs one, sixteen bytes of text another. A conversation of megabytes stays far below;
// a template that doubles a string in a loop ends here, long before memory does.
constexpr size_t kMaxCost = 20'000'000;

// What Python's types have beside their items. A template that asks for one without calling it gets
// a method from jinja2, which is always true and prints an address.
constexpr std::array<std::string_view, 47> kStringMethods = {
    "capitalize",   "casefold",    "center",    "count",      "encode",       "endswith",
    "expandtabs",   "find",        "format",    "format_map", "index",        "isalnum",
    "isalpha",      "isascii",     "isdecimal", "isdigit",    "isidentifier", "islower",
    "isnumeric",    "isprintable", "isspace",   "istitle",    "isupper",      "join",
    "ljust",        "lower",       "lstrip",    "maketrans",  "partition",    "removeprefix",
    "removesuffix", "replace",     "rfind",     "rindex",     "rjust",        "rpartition",
    "rsplit",       "rstrip",      "split",     "splitlines", "startswith",   "strip",
    "swapcase",     "title",       "translate", "upper",      "zfill"};
constexpr std::array<std::string_view, 11> kListMethods = {"append", "clear",   "copy",   "count",
                                                           "extend", "index",   "insert", "pop",
                                                           "remove", "reverse", "sort"};
constexpr std::array<std::string_view, 11> kDictMethods = {
    "clear", "copy",    "fromkeys",   "get",    "items", "keys",
    "pop",   "popitem", "setdefault", "update", "values"};

bool has_method(const Value& value, std::string_view name) {
  const auto in = [&](std::span<const std::string_view> methods) {
    return std::find(methods.begin(), methods.end(), name) != methods.end();
  };
  return (value.is_string() && in(kStringMethods)) || (value.is_list() && in(kListMethods)) ||
         (value.is_dict() && in(kDictMethods)) ||
         (value.loop() != nullptr && (name == "cycle" || name == "changed"));
}

std::optional<Value> loop_attribute(const LoopState& loop, std::string_view name) {
  const auto number = [](size_t n) { return Value(static_cast<int64_t>(n)); };
  const size_t count = loop.items.size();
  if (name == "index") return number(loop.index + 1);
  if (name == "index0") return number(loop.index);
  if (name == "revindex") return number(count - loop.index);
  if (name == "revindex0") return number(count - loop.index - 1);
  if (name == "first") return Value(loop.index == 0);
  if (name == "last") return Value(loop.index + 1 == count);
  if (name == "length") return number(count);
  if (name == "depth") return std::nullopt;  // of recursive loops, which are refused
  if (name == "previtem") {
    return loop.index == 0 ? Value(Undefined{"previtem"}) : loop.items[loop.index - 1];
  }
  if (name == "nextitem") {
    return loop.index + 1 == count ? Value(Undefined{"nextitem"}) : loop.items[loop.index + 1];
  }
  return std::nullopt;
}

}  // namespace

void Machine::fail(const std::string& what, const std::string& hint) const {
  throw_template_error(where_, line_, what, hint);
}

void Machine::charge(size_t bytes) {
  spent_ += 1 + bytes / 16;
  if (spent_ > kMaxCost) fail("the template does not end: it has done more than any needs");
}

std::vector<Value> Machine::iterate(const Value& value) {
  if (const List* items = value.list()) {
    charge(items->items.size() * 16);
    return items->items;
  }
  std::vector<Value> out;
  if (const Dict* items = value.dict()) {
    charge(items->items.size() * 16);
    for (const auto& [key, item] : items->items) out.emplace_back(key);
  } else if (value.is_string()) {
    charge(value.string().size() * 16);
    for (std::string& character : split_characters(value.string())) {
      out.emplace_back(std::move(character));
    }
  } else if (!value.is_undefined()) {
    fail("a value of type " + value.type_name() + " has no items");
  }
  return out;
}

Value Machine::attribute(const Value& value, const std::string& name) const {
  if (value.is_undefined()) {
    fail("'" + printable(value.undefined_name(), 60) + "' is undefined, so it has no '" +
         printable(name, 60) + "'");
  }
  if (name.starts_with("_")) fail("access to '" + printable(name, 60) + "' is not allowed");
  if (has_method(value, name)) {
    fail("the method '" + name + "' of a " + value.type_name() + " without a call is not supported",
         "['" + name + "'] names the key");
  }
  const Value* found = nullptr;
  if (value.dict() != nullptr) found = value.dict()->find(name);
  if (value.name_space() != nullptr) found = value.name_space()->attributes.find(name);
  if (found != nullptr) return *found;
  if (value.loop() != nullptr) {
    if (const auto known = loop_attribute(*value.loop(), name)) return *known;
    fail("'loop." + printable(name, 60) + "' is not supported");
  }
  if (value.macro() != nullptr) fail("attributes of a macro are not supported");
  return Undefined{name};
}

Value Machine::item(const Value& value, const Value& key) const {
  if (value.is_undefined()) {
    fail("'" + printable(value.undefined_name(), 60) + "' is undefined, so it has no items");
  }
  if (key.is_undefined()) fail("'" + printable(key.undefined_name(), 60) + "' is undefined");
  const std::string name = key.is_string() ? key.string() : to_text(key);
  if (const Dict* dict = value.dict()) {
    const Value* found = key.is_string() ? dict->find(name) : nullptr;
    if (found != nullptr) return *found;
    if (key.is_string() && has_method(value, name)) return attribute(value, name);
    return Undefined{name};
  }
  if (key.is_int() && (value.is_list() || value.is_string())) {
    const bool is_text = value.is_string();
    const int64_t size = is_text ? count_characters(value.string())
                                 : static_cast<int64_t>(value.list()->items.size());
    int64_t index = key.integer();
    if (index < 0) index += size;
    if (index < 0 || index >= size) return Undefined{name};
    if (!is_text) return value.list()->items[static_cast<size_t>(index)];
    const std::string& text = value.string();
    size_t position = 0, begin = 0;
    for (int64_t i = 0; i <= index; ++i) {
      begin = position;
      next_character(text, position);
    }
    return text.substr(begin, position - begin);
  }
  if (key.is_string()) return attribute(value, name);
  return Undefined{name};
}

std::vector<std::optional<Value>> Machine::bind(
    const std::string& what, const Arguments& arguments,
    const std::vector<std::string_view>& parameters) const {
  std::vector<std::optional<Value>> out(parameters.size());
  if (arguments.positional.size() > parameters.size()) {
    fail(what + " with " + std::to_string(arguments.positional.size()) +
         " arguments is not supported");
  }
  std::copy(arguments.positional.begin(), arguments.positional.end(), out.begin());
  for (const auto& [name, value] : arguments.named) {
    const auto found = std::find(parameters.begin(), parameters.end(), name);
    if (found == parameters.end()) {
      fail(what + " with an argument '" + printable(name, 60) + "' is not supported");
    }
    std::optional<Value>& slot = out[static_cast<size_t>(found - parameters.begin())];
    if (slot) fail(what + " has its argument '" + printable(name, 60) + "' twice");
    slot = value;
  }
  return out;
}

const std::string& Machine::need_string(const Value& value, const std::string& what) const {
  if (!value.is_string()) fail(what + " needs a string, not " + value.type_name());
  return value.string();
}

int64_t Machine::need_integer(const Value& value, const std::string& what) const {
  if (!value.is_int()) fail(what + " needs a whole number, not " + value.type_name());
  return value.integer();
}

Value Machine::text(std::string value) {
  charge(value.size());
  return Value(std::move(value));
}

Value Machine::list(std::vector<Value> items, bool is_tuple) {
  charge(items.size() * 16);
  return Value(List{std::move(items), is_tuple});
}

}  // namespace llmctl::runtime::chat
