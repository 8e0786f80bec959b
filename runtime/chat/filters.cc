#include "runtime/chat/filters.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdlib>

#include "formats/core/error.h"
#include "runtime/chat/text.h"

namespace llmctl::runtime::chat {

namespace {

using Bound = std::vector<std::optional<Value>>;

bool flag(const Bound& bound, size_t i) { return bound[i] && bound[i]->truthy(); }

/// "a.b.0" looked up step by step, as map and its kin do.
Value look_up(Machine& machine, const Value& value, const Value& path) {
  if (path.is_int()) return machine.item(value, path);
  Value at = value;
  for (const std::string& part :
       split_at(machine.need_string(path, "'attribute'"), ".", -1, false)) {
    int64_t index = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), index);
    const bool number = error == std::errc() && end == part.data() + part.size() && index >= 0;
    at = machine.item(at, number ? Value(index) : Value(part));
  }
  return at;
}

/// What sort, unique, min and max compare: strings without case, unless told otherwise.
Value sort_key(Machine& machine, const Value& value, const std::optional<Value>& attribute,
               bool case_sensitive) {
  const Value key =
      attribute && !attribute->is_none() ? look_up(machine, value, *attribute) : value;
  return !case_sensitive && key.is_string() ? machine.text(to_case(key.string(), Case::kLower))
                                            : key;
}

/// Stable, in the order of `keys`. Returns the places in order.
std::vector<size_t> order_of(Machine& machine, const std::vector<Value>& keys, bool reverse) {
  std::vector<size_t> order(keys.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    machine.charge();
    const auto result = compare(keys[a], keys[b]);
    if (!result) {
      machine.fail("no order between " + keys[a].type_name() + " and " + keys[b].type_name());
    }
    return reverse ? *result > 0 : *result < 0;
  });
  return order;
}

Value sort(Machine& machine, const Value& input, const Arguments& arguments) {
  const Bound bound =
      machine.bind("the filter 'sort'", arguments, {"reverse", "case_sensitive", "attribute"});
  const std::vector<Value> items = machine.iterate(input);
  std::vector<Value> keys;
  for (const Value& item : items) keys.push_back(sort_key(machine, item, bound[2], flag(bound, 1)));
  std::vector<Value> out;
  for (const size_t i : order_of(machine, keys, flag(bound, 0))) out.push_back(items[i]);
  return machine.list(std::move(out));
}

Value dictsort(Machine& machine, const Value& input, const Arguments& arguments) {
  const Bound bound =
      machine.bind("the filter 'dictsort'", arguments, {"case_sensitive", "by", "reverse"});
  if (!input.is_dict()) machine.fail("the filter 'dictsort' needs a dict");
  const bool by_value = bound[1] && equal(*bound[1], Value("value"));
  std::vector<Value> keys;
  for (const auto& [key, value] : input.dict()->items) {
    keys.push_back(sort_key(machine, by_value ? value : Value(key), {}, flag(bound, 0)));
  }
  std::vector<Value> out;
  for (const size_t i : order_of(machine, keys, flag(bound, 2))) {
    const auto& [key, value] = input.dict()->items[i];
    out.push_back(machine.list({Value(key), value}, true));
  }
  return machine.list(std::move(out));
}

Value unique(Machine& machine, const Value& input, const Arguments& arguments) {
  const Bound bound =
      machine.bind("the filter 'unique'", arguments, {"case_sensitive", "attribute"});
  std::vector<Value> keys, out;
  for (const Value& item : machine.iterate(input)) {
    Value key = sort_key(machine, item, bound[1], flag(bound, 0));
    if (key.is_dict() || (key.is_list() && !key.list()->is_tuple)) {
      machine.fail("the filter 'unique' of a " + key.type_name());
    }
    machine.charge(keys.size() * 16);
    const bool known = std::any_of(keys.begin(), keys.end(),
                                   [&](const Value& other) { return equal(key, other); });
    if (known) continue;
    keys.push_back(std::move(key));
    out.push_back(item);
  }
  return machine.list(std::move(out));
}

Value extreme(Machine& machine, const std::string& name, const Value& input,
              const Arguments& arguments) {
  const Bound bound =
      machine.bind("the filter '" + name + "'", arguments, {"case_sensitive", "attribute"});
  const std::vector<Value> items = machine.iterate(input);
  if (items.empty()) return Undefined{name};
  std::vector<Value> keys;
  for (const Value& item : items) keys.push_back(sort_key(machine, item, bound[1], flag(bound, 0)));
  return items[order_of(machine, keys, name == "max").front()];
}

Value map(Machine& machine, const Value& input, const Arguments& arguments) {
  std::vector<Value> out;
  if (!input.truthy()) return machine.list({});  // jinja2 does not even look at the arguments
  if (arguments.positional.empty()) {
    const Bound bound = machine.bind("the filter 'map'", arguments, {"attribute", "default"});
    if (!bound[0]) machine.fail("the filter 'map' needs a filter or an attribute");
    for (const Value& item : machine.iterate(input)) {
      Value value = look_up(machine, item, *bound[0]);
      if (value.is_undefined() && bound[1]) value = *bound[1];
      out.push_back(std::move(value));
    }
    return machine.list(std::move(out));
  }
  const std::string& filter = machine.need_string(arguments.positional[0], "the filter 'map'");
  if (!is_known_filter(filter)) {
    machine.fail("the filter '" + printable(filter, 40) + "' is not supported");
  }
  const Arguments rest{{arguments.positional.begin() + 1, arguments.positional.end()},
                       arguments.named};
  for (const Value& item : machine.iterate(input)) {
    out.push_back(apply_filter(machine, filter, item, rest));
  }
  return machine.list(std::move(out));
}

/// select, reject, selectattr, rejectattr.
Value select(Machine& machine, const std::string& name, const Value& input,
             const Arguments& arguments) {
  const bool by_attribute = name.ends_with("attr"), wanted = name.starts_with("select");
  if (!input.truthy()) return machine.list({});
  std::vector<Value> rest = arguments.positional;
  if (!arguments.named.empty()) {
    machine.fail("named arguments of the filter '" + name + "' are not supported");
  }
  Value path;
  if (by_attribute) {
    if (rest.empty()) machine.fail("the filter '" + name + "' needs an attribute");
    path = rest.front();
    rest.erase(rest.begin());
  }
  std::string test;
  if (!rest.empty()) {
    test = machine.need_string(rest.front(), "the filter '" + name + "'");
    if (!is_known_test(test)) {
      machine.fail("the test '" + printable(test, 40) + "' is not supported");
    }
    rest.erase(rest.begin());
  }
  std::vector<Value> out;
  for (const Value& item : machine.iterate(input)) {
    const Value value = by_attribute ? look_up(machine, item, path) : item;
    const bool holds = test.empty() ? value.truthy() : apply_test(machine, test, value, {rest, {}});
    if (holds == wanted) out.push_back(item);
  }
  return machine.list(std::move(out));
}

Value join(Machine& machine, const Value& input, const Arguments& arguments) {
  const Bound bound = machine.bind("the filter 'join'", arguments, {"d", "attribute"});
  const std::string separator = bound[0] ? to_text(*bound[0]) : std::string();
  std::string out;
  bool first = true;
  for (const Value& item : machine.iterate(input)) {
    if (!first) out += separator;
    first = false;
    const std::string part =
        to_text(bound[1] && !bound[1]->is_none() ? look_up(machine, item, *bound[1]) : item);
    machine.charge(separator.size() + part.size());
    out += part;
  }
  return machine.text(std::move(out));
}

Value tojson(Machine& machine, const Value& input, const Arguments& arguments) {
  const Bound bound = machine.bind("the filter 'tojson'", arguments,
                                   {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ensure_ascii = flag(bound, 0);
  style.sort_keys = flag(bound, 3);
  if (bound[1] && !bound[1]->is_none()) {
    style.indent = machine.need_integer(*bound[1], "the argument 'indent'");
    if (*style.indent > 64) machine.fail("an indent of more than 64");
    style.item_separator = ",";
  }
  if (bound[2] && !bound[2]->is_none()) {
    const List* pair = bound[2]->list();
    if (pair == nullptr || pair->items.size() != 2) machine.fail("'separators' must be a pair");
    style.item_separator = machine.need_string(pair->items[0], "'separators'");
    style.key_separator = machine.need_string(pair->items[1], "'separators'");
  }
  std::optional<std::string> out = to_json(input, style);
  if (!out) machine.fail("no JSON for a value that holds " + input.type_name());
  return machine.text(std::move(*out));
}

Value indent(Machine& machine, const Value& input, const Arguments& arguments) {
  const Bound bound = machine.bind("the filter 'indent'", arguments, {"width", "first", "blank"});
  std::string margin(4, ' ');
  if (bound[0] && bound[0]->is_string()) {
    margin = bound[0]->string();
  } else if (bound[0]) {
    const int64_t width = machine.need_integer(*bound[0], "the argument 'width'");
    if (width > 1000) machine.fail("an indent of more than 1000");
    margin.assign(static_cast<size_t>(std::max<int64_t>(0, width)), ' ');
  }
  // The added line feed keeps a last empty line, as in jinja2.
  const std::vector<std::string> lines = split_lines(to_text(input) + "\n");
  std::string out;
  for (size_t i = 0; i < lines.size(); ++i) {
    const bool empty = lines[i].empty() && !flag(bound, 2);
    if (i == 0 ? flag(bound, 1) : !empty) out += margin;
    out += lines[i];
    if (i + 1 < lines.size()) out += '\n';
    machine.charge(margin.size() + lines[i].size());
  }
  return machine.text(std::move(out));
}

Value to_int(Machine& machine, const Value& input, const Arguments& arguments) {
  const Bound bound = machine.bind("the filter 'int'", arguments, {"default"});
  const Value fallback = bound[0].value_or(Value(int64_t{0}));
  if (input.is_undefined()) machine.fail("the filter 'int' of an undefined value");
  if (input.is_int()) return Value(input.integer());
  double number = 0;
  if (input.is_float()) {
    number = input.real();
  } else if (input.is_string()) {
    const std::string text = strip(input.string(), Side::kBoth);
    int64_t whole = 0;
    const char* begin = text.data() + (text.starts_with('+') ? 1 : 0);
    const auto [end, error] = std::from_chars(begin, text.data() + text.size(), whole);
    if (error == std::errc() && end == text.data() + text.size()) return Value(whole);
    char* stop = nullptr;
    number = std::strtod(text.c_str(), &stop);
    if (text.empty() || stop != text.c_str() + text.size() ||
        text.find_first_of("xXpP_") != std::string::npos) {
      return fallback;
    }
  } else {
    return fallback;
  }
  if (!(std::abs(number) < 9.2e18)) return fallback;
  return Value(static_cast<int64_t>(number));
}

Value length(Machine& machine, const Value& input) {
  if (input.is_string()) return Value(count_characters(input.string()));
  if (input.is_list()) return Value(static_cast<int64_t>(input.list()->items.size()));
  if (input.is_dict()) return Value(static_cast<int64_t>(input.dict()->items.size()));
  if (input.is_undefined()) return Value(int64_t{0});
  machine.fail("a value of type " + input.type_name() + " has no length");
}

Value items_of(Machine& machine, const Value& input) {
  std::vector<Value> out;
  if (input.is_undefined()) return machine.list({});
  if (!input.is_dict()) machine.fail("the filter 'items' needs a dict");
  for (const auto& [key, value] : input.dict()->items) {
    out.push_back(machine.list({Value(key), value}, true));
  }
  return machine.list(std::move(out));
}

Value sum(Machine& machine, const Value& input, const Arguments& arguments) {
  const Bound bound = machine.bind("the filter 'sum'", arguments, {"attribute", "start"});
  int64_t total = bound[1] ? machine.need_integer(*bound[1], "the filter 'sum'") : 0;
  for (const Value& item : machine.iterate(input)) {
    const Value value = bound[0] && !bound[0]->is_none() ? look_up(machine, item, *bound[0]) : item;
    if (__builtin_add_overflow(total, machine.need_integer(value, "the filter 'sum'"), &total)) {
      machine.fail("a number beyond 64 bits");
    }
  }
  return Value(total);
}

template <Case kCase>
Value change_case(Machine& machine, const Value& input) {
  return machine.text(to_case(to_text(input), kCase));
}

/// Not str.title(): words begin behind white space, '-' and opening brackets only.
Value title(Machine& machine, const Value& input) {
  const std::string text = to_text(input);
  std::string out, word;
  const auto end_word = [&] {
    size_t first = 0;
    if (!word.empty()) next_character(word, first);
    out += to_case(std::string_view(word).substr(0, first), Case::kUpper) +
           to_case(std::string_view(word).substr(first), Case::kLower);
    word.clear();
  };
  for (size_t position = 0; position < text.size();) {
    const size_t begin = position;
    const char32_t c = next_character(text, position);
    const bool between =
        is_python_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
    if (between) end_word();
    (between ? out : word).append(text, begin, position - begin);
  }
  end_word();
  return machine.text(std::move(out));
}

Value trim(Machine& machine, const Value& input, const Arguments& arguments) {
  const Bound bound = machine.bind("the filter 'trim'", arguments, {"chars"});
  const bool all = !bound[0] || bound[0]->is_none();
  return machine.text(strip(to_text(input), Side::kBoth,
                            all ? nullptr : &machine.need_string(*bound[0], "'chars'")));
}

Value replace_text(Machine& machine, const Value& input, const Arguments& arguments) {
  const Bound bound = machine.bind("the filter 'replace'", arguments, {"old", "new", "count"});
  if (!bound[0] || !bound[1]) machine.fail("the filter 'replace' needs two texts");
  const int64_t limit = bound[2] && !bound[2]->is_none()
                            ? machine.need_integer(*bound[2], "the filter 'replace'")
                            : -1;
  const std::string text = to_text(input), to = to_text(*bound[1]);
  machine.charge(text.size());
  std::string out = replace(text, to_text(*bound[0]), to, limit);
  return machine.text(std::move(out));
}

Value fall_back(Machine& machine, const Value& input, const Arguments& arguments) {
  const Bound bound = machine.bind("the filter 'default'", arguments, {"default_value", "boolean"});
  const bool missing = input.is_undefined() || (flag(bound, 1) && !input.truthy());
  return missing ? bound[0].value_or(Value("")) : input;
}

Value first(Machine& machine, const Value& input) {
  const std::vector<Value> items = machine.iterate(input);
  return items.empty() ? Value(Undefined{"first"}) : items.front();
}

Value last(Machine& machine, const Value& input) {
  const std::vector<Value> items = machine.iterate(input);
  return items.empty() ? Value(Undefined{"last"}) : items.back();
}

Value reverse(Machine& machine, const Value& input) {
  std::vector<Value> items = machine.iterate(input);
  std::reverse(items.begin(), items.end());
  if (!input.is_string()) return machine.list(std::move(items));
  std::string out;
  for (const Value& item : items) out += item.string();
  return machine.text(std::move(out));
}

Value absolute(Machine& machine, const Value& input) {
  if (input.is_float()) return Value(std::abs(input.real()));
  const int64_t number = machine.need_integer(input, "the filter 'abs'");
  if (number == INT64_MIN) machine.fail("a number beyond 64 bits");
  return Value(number < 0 ? -number : number);
}

Value as_list(Machine& machine, const Value& input) { return machine.list(machine.iterate(input)); }
Value as_text(Machine& machine, const Value& input) { return machine.text(to_text(input)); }
Value as_safe(Machine& machine, const Value&) {
  machine.fail("the filter 'safe' anywhere but at the end of {{ }} is not supported");
}

using Filter = Value (*)(Machine&, const std::string&, const Value&, const Arguments&);
struct FilterRow {
  std::string_view name;
  Filter apply;
};

/// For filters that take no argument, and for those that need not know their name.
template <Value (*kFunction)(Machine&, const Value&)>
Value alone(Machine& machine, const std::string& name, const Value& input,
            const Arguments& arguments) {
  machine.bind("the filter '" + name + "'", arguments, {});
  return kFunction(machine, input);
}
template <Value (*kFunction)(Machine&, const Value&, const Arguments&)>
Value with(Machine& machine, const std::string&, const Value& input, const Arguments& arguments) {
  return kFunction(machine, input, arguments);
}

constexpr std::array kFilters = {
    FilterRow{"abs", alone<absolute>},
    FilterRow{"capitalize", alone<change_case<Case::kCapital>>},
    FilterRow{"count", alone<length>},
    FilterRow{"d", with<fall_back>},
    FilterRow{"default", with<fall_back>},
    FilterRow{"dictsort", with<dictsort>},
    FilterRow{"first", alone<first>},
    FilterRow{"indent", with<indent>},
    FilterRow{"int", with<to_int>},
    FilterRow{"items", alone<items_of>},
    FilterRow{"join", with<join>},
    FilterRow{"last", alone<last>},
    FilterRow{"length", alone<length>},
    FilterRow{"list", alone<as_list>},
    FilterRow{"lower", alone<change_case<Case::kLower>>},
    FilterRow{"map", with<map>},
    FilterRow{"max", extreme},
    FilterRow{"min", extreme},
    FilterRow{"reject", select},
    FilterRow{"rejectattr", select},
    FilterRow{"replace", with<replace_text>},
    FilterRow{"reverse", alone<reverse>},
    FilterRow{"safe", alone<as_safe>},
    FilterRow{"select", select},
    FilterRow{"selectattr", select},
    FilterRow{"sort", with<sort>},
    FilterRow{"string", alone<as_text>},
    FilterRow{"sum", with<sum>},
    FilterRow{"title", alone<title>},
    FilterRow{"tojson", with<tojson>},
    FilterRow{"trim", with<trim>},
    FilterRow{"unique", with<unique>},
    FilterRow{"upper", alone<change_case<Case::kUpper>>},
};

const FilterRow* find_filter(std::string_view name) {
  const auto found = std::find_if(kFilters.begin(), kFilters.end(),
                                  [&](const FilterRow& row) { return row.name == name; });
  return found == kFilters.end() ? nullptr : &*found;
}

}  // namespace

bool is_known_filter(std::string_view name) { return find_filter(name) != nullptr; }

Value apply_filter(Machine& machine, const std::string& name, const Value& input,
                   const Arguments& arguments) {
  machine.charge();
  return find_filter(name)->apply(machine, name, input, arguments);
}

}  // namespace llmctl::runtime::chat
