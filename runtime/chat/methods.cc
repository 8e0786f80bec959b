#include "runtime/chat/methods.h"

#include <algorithm>

#include "formats/core/error.h"
#include "runtime/chat/text.h"

namespace llmctl::runtime::chat {

namespace {

/// Every character satisfies `holds`, and there is one.
template <typename Predicate>
bool all_characters(const std::string& text, Predicate holds) {
  for (size_t position = 0; position < text.size();) {
    if (!holds(next_character(text, position))) return false;
  }
  return !text.empty();
}

int64_t limit_of(Machine& machine, const std::optional<Value>& value, const std::string& what) {
  return value ? machine.need_integer(*value, what) : -1;
}

Value list_of(Machine& machine, std::vector<std::string> parts) {
  std::vector<Value> items;
  for (std::string& part : parts) items.push_back(machine.text(std::move(part)));
  return machine.list(std::move(items));
}

/// The place of a part counted in characters; -1 for none.
int64_t place_of(const std::string& text, size_t at) {
  if (at == std::string::npos) return -1;
  return count_characters(std::string_view(text).substr(0, at));
}

int64_t count_of(const std::string& text, const std::string& part) {
  if (part.empty()) return count_characters(text) + 1;
  int64_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos;
       at = text.find(part, at + part.size())) {
    ++count;
  }
  return count;
}

bool has_edge(Machine& machine, const std::string& text, const Value& edge, bool at_start,
              const std::string& what) {
  if (const List* list = edge.list(); list != nullptr && list->is_tuple) {
    return std::any_of(list->items.begin(), list->items.end(), [&](const Value& item) {
      return has_edge(machine, text, item, at_start, what);
    });
  }
  const std::string& part = machine.need_string(edge, what);
  return at_start ? text.starts_with(part) : text.ends_with(part);
}

Value call_string_method(Machine& machine, const std::string& text, const std::string& name,
                         const Arguments& arguments) {
  const std::string what = "the method '" + name + "'";
  const auto bind = [&](std::vector<std::string_view> parameters, size_t required) {
    auto bound = machine.bind(what, arguments, parameters);
    for (size_t i = 0; i < required; ++i) {
      if (!bound[i]) machine.fail(what + " lacks an argument");
    }
    return bound;
  };
  machine.charge(text.size());
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    const auto bound = bind({"chars"}, 0);
    const bool all = !bound[0] || bound[0]->is_none();
    const Side side = name == "strip" ? Side::kBoth : name == "lstrip" ? Side::kLeft : Side::kRight;
    return machine.text(strip(text, side, all ? nullptr : &machine.need_string(*bound[0], what)));
  }
  if (name == "split" || name == "rsplit") {
    const auto bound = bind({"sep", "maxsplit"}, 0);
    const int64_t limit = limit_of(machine, bound[1], what);
    if (!bound[0] || bound[0]->is_none()) {
      if (name == "rsplit" && limit >= 0) machine.fail("rsplit at white space is not supported");
      return list_of(machine, split_at_space(text, limit));
    }
    const std::string& separator = machine.need_string(*bound[0], what);
    if (separator.empty()) machine.fail("split at nothing");
    return list_of(machine, split_at(text, separator, limit, name == "rsplit"));
  }
  if (name == "splitlines") {
    bind({}, 0);
    return list_of(machine, split_lines(text));
  }
  if (name == "startswith" || name == "endswith") {
    const auto bound = bind({"prefix"}, 1);
    return has_edge(machine, text, *bound[0], name == "startswith", what);
  }
  if (name == "lower" || name == "upper" || name == "title" || name == "capitalize") {
    bind({}, 0);
    const Case wanted = name == "lower"   ? Case::kLower
                        : name == "upper" ? Case::kUpper
                        : name == "title" ? Case::kTitle
                                          : Case::kCapital;
    return machine.text(to_case(text, wanted));
  }
  if (name == "replace") {
    const auto bound = bind({"old", "new", "count"}, 2);
    return machine.text(replace(text, machine.need_string(*bound[0], what),
                                machine.need_string(*bound[1], what),
                                limit_of(machine, bound[2], what)));
  }
  if (name == "join") {
    const auto bound = bind({"iterable"}, 1);
    std::string out;
    bool first = true;
    for (const Value& item : machine.iterate(*bound[0])) {
      if (!first) out += text;
      first = false;
      out += machine.need_string(item, what);
      machine.charge(text.size() + item.string().size());
    }
    return machine.text(std::move(out));
  }
  if (name == "find" || name == "rfind" || name == "count" || name == "index") {
    const auto bound = bind({"sub"}, 1);
    const std::string& part = machine.need_string(*bound[0], what);
    if (name == "count") return Value(count_of(text, part));
    const int64_t place = place_of(text, name == "rfind" ? text.rfind(part) : text.find(part));
    if (name == "index" && place < 0) machine.fail("index: the part is not in the text");
    return Value(place);
  }
  if (name == "removeprefix" || name == "removesuffix") {
    const auto bound = bind({"part"}, 1);
    const std::string& part = machine.need_string(*bound[0], what);
    if (name == "removeprefix") {
      return machine.text(text.starts_with(part) ? text.substr(part.size()) : text);
    }
    return machine.text(text.ends_with(part) ? text.substr(0, text.size() - part.size()) : text);
  }
  if (name == "isspace") {
    bind({}, 0);
    return Value(all_characters(text, is_python_space));
  }
  if (name == "isdigit" || name == "isalpha") {
    bind({}, 0);
    const bool ascii = all_characters(text, [](char32_t c) { return c < 0x80; });
    if (!ascii && !text.empty()) machine.fail(what + " beyond ASCII is not supported");
    return Value(all_characters(text, [&](char32_t c) {
      return name == "isdigit" ? c >= '0' && c <= '9' : (c | 0x20) >= 'a' && (c | 0x20) <= 'z';
    }));
  }
  machine.fail("the string method '" + printable(name, 40) + "' is not supported");
}

Value call_dict_method(Machine& machine, const Dict& dict, const std::string& name,
                       const Arguments& arguments) {
  const std::string what = "the method '" + name + "'";
  if (name == "get") {
    const auto bound = machine.bind(what, arguments, {"key", "default"});
    if (!bound[0]) machine.fail(what + " lacks an argument");
    const Value* found = bound[0]->is_string() ? dict.find(bound[0]->string()) : nullptr;
    return found != nullptr ? *found : bound[1].value_or(Value());
  }
  std::vector<Value> out;
  for (const auto& [key, value] : dict.items) {
    if (name == "keys") {
      out.push_back(Value(key));
    } else if (name == "values") {
      out.push_back(value);
    } else if (name == "items") {
      out.push_back(machine.list({Value(key), value}, true));
    }
  }
  if (name != "keys" && name != "values" && name != "items") {
    machine.fail("the dict method '" + printable(name, 40) + "' is not supported");
  }
  machine.bind(what, arguments, {});
  return machine.list(std::move(out));
}

}  // namespace

Value call_method(Machine& machine, const Value& object, const std::string& name,
                  const Arguments& arguments) {
  machine.charge();
  if (object.is_undefined()) machine.attribute(object, name);
  if (object.is_string()) return call_string_method(machine, object.string(), name, arguments);
  if (object.is_dict()) {
    // A key that is no method is a value, and a value is no function.
    return call_dict_method(machine, *object.dict(), name, arguments);
  }
  if (object.is_list() && (name == "index" || name == "count")) {
    const auto bound = machine.bind("the method '" + name + "'", arguments, {"value"});
    if (!bound[0]) machine.fail("the method '" + name + "' lacks an argument");
    const std::vector<Value>& items = object.list()->items;
    machine.charge(items.size() * 16);
    if (name == "count") {
      return Value(static_cast<int64_t>(std::count_if(
          items.begin(), items.end(), [&](const Value& item) { return equal(item, *bound[0]); })));
    }
    const auto found = std::find_if(items.begin(), items.end(),
                                    [&](const Value& item) { return equal(item, *bound[0]); });
    if (found == items.end()) machine.fail("index: the value is not in the list");
    return Value(static_cast<int64_t>(found - items.begin()));
  }
  if (LoopState* loop = object.loop(); loop != nullptr && name == "cycle") {
    if (arguments.positional.empty() || !arguments.named.empty()) machine.fail("cycle of nothing");
    return arguments.positional[loop->index % arguments.positional.size()];
  }
  machine.fail("the method '" + printable(name, 40) + "' of a " + object.type_name() +
               " is not supported");
}

}  // namespace llmctl::runtime::chat
