#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "runtime/chat/filters.h"
#include "runtime/chat/text.h"

namespace llmctl::runtime::chat {

namespace {

constexpr std::array<std::string_view, 36> kTests = {
    "boolean", "callable", "defined", "divisibleby", "eq", "equalto", "even", "false", "float",
    "ge", "greaterthan", "gt", "in", "integer", "iterable", "le", "lessthan", "lower", "lt",
    "mapping", "ne", "none", "number", "odd", "sameas", "sequence", "string", "true", "undefined",
    "upper",
    // In select and its kin they have names like these too.
    "==", "!=", "<", "<=", ">", ">="};

bool has_case(const Value& value, Case wanted) {
  // str.islower(): some cased character, and none of the other case.
  const std::string text = to_text(value);
  const Case other = wanted == Case::kLower ? Case::kUpper : Case::kLower;
  return text == to_case(text, wanted) && text != to_case(text, other);
}

bool ordered(Machine& machine, const std::string& name, const Value& a, const Value& b) {
  const auto order = compare(a, b);
  if (!order) machine.fail("no order between " + a.type_name() + " and " + b.type_name());
  if (name == "lt") return *order < 0;
  if (name == "le") return *order <= 0;
  if (name == "gt") return *order > 0;
  return *order >= 0;
}

int64_t remainder(Machine& machine, const Value& value, const Value& divisor,
                  const std::string& what) {
  const int64_t a = machine.need_integer(value, what), b = machine.need_integer(divisor, what);
  if (b == 0) machine.fail("division by zero");
  return b == -1 ? 0 : a % b;
}

}  // namespace

bool is_known_test(std::string_view name) {
  return std::find(kTests.begin(), kTests.end(), name) != kTests.end();
}

bool contains(Machine& machine, const Value& haystack, const Value& needle) {
  machine.charge();
  if (haystack.is_string()) {
    return haystack.string().find(machine.need_string(needle, "'in' a string")) !=
           std::string::npos;
  }
  if (const Dict* dict = haystack.dict()) {
    if (needle.is_dict() || (needle.is_list() && !needle.list()->is_tuple)) {
      machine.fail("a " + needle.type_name() + " cannot be a key");
    }
    return needle.is_string() && dict->find(needle.string()) != nullptr;
  }
  const std::vector<Value> items = machine.iterate(haystack);
  return std::any_of(items.begin(), items.end(),
                     [&](const Value& item) { return equal(item, needle); });
}

bool apply_test(Machine& machine, const std::string& spelling, const Value& input,
                const Arguments& arguments) {
  machine.charge();
  constexpr std::array<std::pair<std::string_view, std::string_view>, 8> kAliases = {
      {{"==", "eq"},
       {"equalto", "eq"},
       {"!=", "ne"},
       {"<", "lt"},
       {"lessthan", "lt"},
       {"<=", "le"},
       {">", "gt"},
       {"greaterthan", "gt"}}};
  std::string name = spelling == ">=" ? "ge" : spelling;
  for (const auto& [alias, meaning] : kAliases) {
    if (spelling == alias) name = meaning;
  }
  const std::string what = "the test '" + name + "'";
  const auto argument = [&]() -> const Value& {
    if (arguments.positional.size() != 1) machine.fail(what + " needs one argument");
    return arguments.positional[0];
  };
  if (name == "divisibleby") return remainder(machine, input, argument(), what) == 0;
  if (name == "eq") return equal(input, argument());
  if (name == "ne") return !equal(input, argument());
  if (name == "in") return contains(machine, argument(), input);
  for (const char* order : {"lt", "le", "gt", "ge"}) {
    if (name == order) return ordered(machine, name, input, argument());
  }
  if (name == "sameas") {
    const Value& other = argument();
    if ((input.is_none() || input.is_bool()) || (other.is_none() || other.is_bool())) {
      return input.type_name() == other.type_name() && equal(input, other);
    }
    machine.fail(what + " of anything but true, false and none is not supported");
  }
  if (!arguments.positional.empty()) machine.fail(what + " with an argument is not supported");
  if (name == "defined") return !input.is_undefined();
  if (name == "undefined") return input.is_undefined();
  if (name == "none") return input.is_none();
  if (name == "boolean") return input.is_bool();
  if (name == "true") return input.is_bool() && input.truthy();
  if (name == "false") return input.is_bool() && !input.truthy();
  if (name == "integer") return input.is_int() && !input.is_bool();
  if (name == "float") return input.is_float();
  if (name == "number") return input.is_number();
  if (name == "string") return input.is_string();
  if (name == "mapping") return input.is_dict();
  if (name == "callable") return input.macro() != nullptr;
  // jinja2 asks for len() and [], which an undefined value has as well.
  if (name == "sequence") {
    return input.is_string() || input.is_list() || input.is_dict() || input.is_undefined();
  }
  if (name == "iterable") {
    return input.is_string() || input.is_list() || input.is_dict() || input.is_undefined() ||
           input.loop() != nullptr;
  }
  if ((name == "odd" || name == "even") && input.is_float()) {
    const double rest = std::fmod(input.real(), 2.0);
    return name == "even" ? rest == 0 : rest == 1 || rest == -1;
  }
  if (name == "odd") return remainder(machine, input, Value(int64_t{2}), what) != 0;
  if (name == "even") return remainder(machine, input, Value(int64_t{2}), what) == 0;
  if (name == "lower") return has_case(input, Case::kLower);
  if (name == "upper") return has_case(input, Case::kUpper);
  machine.fail(what + " is not supported");
}

}  // namespace llmctl::runtime::chat
