#include "runtime/chat/value.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "formats/core/error.h"
#include "runtime/chat/text.h"
#include "runtime/tokenizer/unicode.h"

namespace llmctl::runtime::chat {

const Value* Dict::find(std::string_view key) const {
  for (const auto& [name, value] : items) {
    if (name == key) return &value;
  }
  return nullptr;
}

void Dict::set(std::string key, Value value) {
  for (auto& [name, old] : items) {
    if (name == key) {
      old = std::move(value);
      return;
    }
  }
  items.emplace_back(std::move(key), std::move(value));
}

namespace {

// Printing, comparing and freeing recurse; a template may nest lists in a loop.
int depth_above(const Value& value) {
  constexpr int kMaxDepth = 200;
  const int depth = value.list() != nullptr   ? value.list()->depth
                    : value.dict() != nullptr ? value.dict()->depth
                                              : 0;
  if (depth >= kMaxDepth) throw_invalid("chat template", "values nested deeper than 200 levels");
  return depth + 1;
}

}  // namespace

Value::Value(List value) {
  for (const Value& item : value.items) value.depth = std::max(value.depth, depth_above(item));
  data_ = std::make_shared<const List>(std::move(value));
}

Value::Value(Dict value) {
  for (const auto& item : value.items) {
    value.depth = std::max(value.depth, depth_above(item.second));
  }
  data_ = std::make_shared<const Dict>(std::move(value));
}

Value Value::from_json(const nlohmann::ordered_json& json) {
  switch (json.type()) {
    case nlohmann::ordered_json::value_t::boolean:
      return Value(json.get<bool>());
    case nlohmann::ordered_json::value_t::number_integer:
      return Value(json.get<int64_t>());
    case nlohmann::ordered_json::value_t::number_unsigned: {
      const uint64_t number = json.get<uint64_t>();
      if (number > INT64_MAX) return Value(static_cast<double>(number));
      return Value(static_cast<int64_t>(number));
    }
    case nlohmann::ordered_json::value_t::number_float:
      return Value(json.get<double>());
    case nlohmann::ordered_json::value_t::string:
      // What a user types need not be UTF-8; what the template computes with must be.
      return Value(tokenizer::to_valid_utf8(json.get_ref<const std::string&>()));
    case nlohmann::ordered_json::value_t::array: {
      List list;
      for (const auto& item : json) list.items.push_back(from_json(item));
      return Value(std::move(list));
    }
    case nlohmann::ordered_json::value_t::object: {
      Dict dict;
      for (const auto& [key, item] : json.items()) dict.items.emplace_back(key, from_json(item));
      return Value(std::move(dict));
    }
    default:
      return Value();
  }
}

int64_t Value::integer() const {
  return is_bool() ? (std::get<bool>(data_) ? 1 : 0) : std::get<int64_t>(data_);
}

double Value::real() const {
  return is_float() ? std::get<double>(data_) : static_cast<double>(integer());
}

bool Value::truthy() const {
  if (is_undefined() || is_none()) return false;
  if (is_int()) return integer() != 0;
  if (is_float()) return real() != 0;
  if (const std::string* text = string_ptr()) return !text->empty();
  if (const List* items = list()) return !items->items.empty();
  if (const Dict* items = dict()) return !items->items.empty();
  return true;
}

std::string Value::type_name() const {
  if (is_undefined()) return "Undefined";
  if (is_none()) return "NoneType";
  if (is_bool()) return "bool";
  if (is_int()) return "int";
  if (is_float()) return "float";
  if (is_string()) return "str";
  if (const List* items = list()) return items->is_tuple ? "tuple" : "list";
  if (is_dict()) return "dict";
  if (name_space() != nullptr) return "Namespace";
  return macro() != nullptr ? "Macro" : "LoopContext";
}

bool equal(const Value& a, const Value& b) {
  if (a.is_int() && b.is_int()) return a.integer() == b.integer();
  if (a.is_number() && b.is_number()) return a.real() == b.real();
  if (a.is_string() && b.is_string()) return a.string() == b.string();
  if (a.is_none() || a.is_undefined()) return a.type_name() == b.type_name();
  if (a.is_list() && b.is_list()) {
    const List &x = *a.list(), &y = *b.list();
    return x.is_tuple == y.is_tuple &&
           std::equal(x.items.begin(), x.items.end(), y.items.begin(), y.items.end(), equal);
  }
  if (a.is_dict() && b.is_dict()) {
    const Dict &x = *a.dict(), &y = *b.dict();
    return x.items.size() == y.items.size() &&
           std::all_of(x.items.begin(), x.items.end(), [&](const auto& item) {
             const Value* other = y.find(item.first);
             return other != nullptr && equal(item.second, *other);
           });
  }
  if (a.name_space() != nullptr) return a.name_space() == b.name_space();
  if (a.macro() != nullptr) return a.macro() == b.macro();
  return a.loop() != nullptr && a.loop() == b.loop();
}

std::optional<int> compare(const Value& a, const Value& b) {
  if (a.is_int() && b.is_int()) {
    return a.integer() < b.integer() ? -1 : a.integer() > b.integer() ? 1 : 0;
  }
  if (a.is_number() && b.is_number()) return a.real() < b.real() ? -1 : a.real() > b.real() ? 1 : 0;
  // The order of UTF-8 is that of code points.
  if (a.is_string() && b.is_string()) {
    const int order = a.string().compare(b.string());
    return order < 0 ? -1 : order > 0 ? 1 : 0;
  }
  if (a.is_list() && b.is_list() && a.list()->is_tuple == b.list()->is_tuple) {
    const std::vector<Value>&x = a.list()->items, &y = b.list()->items;
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
      if (!equal(x[i], y[i])) return compare(x[i], y[i]);
    }
    return x.size() < y.size() ? -1 : x.size() > y.size() ? 1 : 0;
  }
  return std::nullopt;
}

namespace {

std::string float_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  // repr: the shortest digits that read back, in scientific form outside 1e-4 <= |x| < 1e16.
  std::array<char, 64> buffer;
  auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value,
                           std::chars_format::scientific)
                 .ptr;
  std::string text(buffer.data(), end);
  const size_t e = text.find('e');
  const int exponent = std::atoi(text.c_str() + e + 1);
  if (exponent < -4 || exponent >= 16) return text;
  end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, std::chars_format::fixed)
            .ptr;
  text.assign(buffer.data(), end);
  if (text.find('.') == std::string::npos) text += ".0";
  return text;
}

void append_json_string(const std::string& text, bool ensure_ascii, std::string& out) {
  const auto unit = [&](uint32_t code) {
    std::array<char, 8> buffer;
    std::snprintf(buffer.data(), buffer.size(), "\\u%04x", code & 0xFFFFu);
    out += buffer.data();
  };
  out += '"';
  for (size_t position = 0; position < text.size();) {
    const size_t begin = position;
    const char32_t c = next_character(text, position);
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        if (c < 0x20 || (ensure_ascii && c >= 0x7F && c < 0x10000)) {
          unit(c);
        } else if (ensure_ascii && c >= 0x10000) {
          unit(0xD800 + ((c - 0x10000) >> 10));
          unit(0xDC00 + ((c - 0x10000) & 0x3FF));
        } else {
          out.append(text, begin, position - begin);
        }
    }
  }
  out += '"';
}

bool append_json(const Value& value, const JsonStyle& style, size_t depth, std::string& out) {
  const auto line_break = [&](size_t level) {
    if (!style.indent) return;
    out += '\n';
    out.append(level * static_cast<size_t>(std::max<int64_t>(0, *style.indent)), ' ');
  };
  if (value.is_none()) {
    out += "null";
  } else if (value.is_bool()) {
    out += value.integer() != 0 ? "true" : "false";
  } else if (value.is_int()) {
    out += std::to_string(value.integer());
  } else if (value.is_float()) {
    const double number = value.real();
    out += std::isnan(number)   ? "NaN"
           : std::isinf(number) ? (number < 0 ? "-Infinity" : "Infinity")
                                : float_text(number);
  } else if (value.is_string()) {
    append_json_string(value.string(), style.ensure_ascii, out);
  } else if (const List* list = value.list()) {
    out += '[';
    for (size_t i = 0; i < list->items.size(); ++i) {
      if (i > 0) out += style.item_separator;
      line_break(depth + 1);
      if (!append_json(list->items[i], style, depth + 1, out)) return false;
    }
    if (!list->items.empty()) line_break(depth);
    out += ']';
  } else if (const Dict* dict = value.dict()) {
    std::vector<const std::pair<std::string, Value>*> items;
    for (const auto& item : dict->items) items.push_back(&item);
    if (style.sort_keys) {
      std::sort(items.begin(), items.end(), [](auto* a, auto* b) { return a->first < b->first; });
    }
    out += '{';
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out += style.item_separator;
      line_break(depth + 1);
      append_json_string(items[i]->first, style.ensure_ascii, out);
      out += style.key_separator;
      if (!append_json(items[i]->second, style, depth + 1, out)) return false;
    }
    if (!items.empty()) line_break(depth);
    out += '}';
  } else {
    return false;
  }
  return true;
}

}  // namespace

std::string to_text(const Value& value) {
  if (value.is_undefined()) return {};
  if (value.is_string()) return value.string();
  return to_repr(value);
}

std::string to_repr(const Value& value) {
  if (value.is_undefined()) return "Undefined";
  if (value.is_none()) return "None";
  if (value.is_bool()) return value.integer() != 0 ? "True" : "False";
  if (value.is_int()) return std::to_string(value.integer());
  if (value.is_float()) return float_text(value.real());
  if (value.is_string()) return python_repr(value.string());
  std::string out;
  if (const List* list = value.list()) {
    out = list->is_tuple ? "(" : "[";
    for (size_t i = 0; i < list->items.size(); ++i) {
      if (i > 0) out += ", ";
      out += to_repr(list->items[i]);
    }
    if (list->is_tuple && list->items.size() == 1) out += ',';
    return out + (list->is_tuple ? ")" : "]");
  }
  if (const Dict* dict = value.dict()) {
    out = "{";
    for (const auto& [key, item] : dict->items) {
      if (out.size() > 1) out += ", ";
      out += python_repr(key) + ": " + to_repr(item);
    }
    return out + "}";
  }
  return "<" + value.type_name() + ">";
}

std::optional<std::string> to_json(const Value& value, const JsonStyle& style) {
  std::string out;
  if (!append_json(value, style, 0, out)) return std::nullopt;
  return out;
}

}  // namespace llmctl::runtime::chat
