#include <algorithm>
#include <array>
#include <cmath>
#include <ctime>
#include <unordered_map>

#include "formats/core/error.h"
#include "runtime/chat/filters.h"
#include "runtime/chat/lexer.h"
#include "runtime/chat/methods.h"
#include "runtime/chat/syntax.h"
#include "runtime/chat/template.h"
#include "runtime/chat/text.h"

namespace llmctl::runtime::chat {

/// Names and their values; lookups go on in `outer`.
struct Scope {
  Scope* outer = nullptr;
  std::unordered_map<std::string, Value> names;
};

struct MacroDefinition {
  const Stmt* statement;
  Scope* scope;  ///< where it was defined: the outermost
};

struct ParsedTemplate {
  std::string where;
  Block block;
};

namespace {

constexpr int kMaxCalls = 100;
constexpr size_t kScopeCost = 320;      ///< a scope takes as long as twenty steps
constexpr int64_t kMaxRange = 100'000;  // jinja2.sandbox.MAX_RANGE
constexpr std::array<std::string_view, 5> kFunctions = {"range", "dict", "namespace",
                                                        "raise_exception", "strftime_now"};
constexpr std::array<std::string_view, 3> kUnsupportedFunctions = {"lipsum", "cycler", "joiner"};

bool is_function(std::string_view name) {
  return std::find(kFunctions.begin(), kFunctions.end(), name) != kFunctions.end();
}

enum class Flow { kOn, kBreak, kContinue };

class Interpreter {
 public:
  explicit Interpreter(const ParsedTemplate& parsed) : machine_(parsed.where) {}
  // Namespaces may hold each other, in rings and in long chains.
  ~Interpreter() {
    for (const auto& space : namespaces_) space->attributes.items.clear();
  }
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  std::string run(const Block& block, const Dict& variables) {
    const auto globals = std::make_shared<Scope>();
    for (const auto& [name, value] : variables.items) globals->names[name] = value;
    scope_ = globals;
    std::string out;
    run_block(block, out);
    return out;
  }

 private:
  /// A scope inside the current one, left again at the end.
  class Inner {
   public:
    Inner(Interpreter& interpreter, Scope* outer)
        : interpreter_(interpreter), before_(interpreter.scope_) {
      interpreter.scope_ = std::make_shared<Scope>();
      interpreter.scope_->outer = outer;
    }
    ~Inner() { interpreter_.scope_ = before_; }
    Inner(const Inner&) = delete;
    Inner& operator=(const Inner&) = delete;

   private:
    Interpreter& interpreter_;
    std::shared_ptr<Scope> before_;
  };

  // --- statements ---

  Flow run_block(const Block& block, std::string& out) {
    for (const auto& statement : block) {
      const Flow flow = run_statement(*statement, out);
      if (flow != Flow::kOn) return flow;
    }
    return Flow::kOn;
  }

  Flow run_statement(const Stmt& statement, std::string& out) {
    machine_.set_line(statement.line);
    machine_.charge();
    switch (statement.kind) {
      case Stmt::Kind::kText:
        append(statement.text, out);
        return Flow::kOn;
      case Stmt::Kind::kPrint:
        append(to_text(evaluate(*statement.expr)), out);
        return Flow::kOn;
      case Stmt::Kind::kIf:
        for (const auto& [condition, body] : statement.branches) {
          if (!condition || evaluate(*condition).truthy()) return run_block(body, out);
        }
        return Flow::kOn;
      case Stmt::Kind::kFor:
        return run_for(statement, out);
      case Stmt::Kind::kSet:
        assign(statement.target, evaluate(*statement.expr));
        return Flow::kOn;
      case Stmt::Kind::kSetBlock: {
        std::string text = captured(statement.body);
        Value value = machine_.text(std::move(text));
        if (statement.expr) value = apply_filters(*statement.expr, std::move(value));
        assign(statement.target, std::move(value));
        return Flow::kOn;
      }
      case Stmt::Kind::kFilterBlock: {
        Value value = machine_.text(captured(statement.body));
        append(to_text(apply_filters(*statement.expr, std::move(value))), out);
        return Flow::kOn;
      }
      case Stmt::Kind::kMacro:
        define_macro(statement);
        return Flow::kOn;
      case Stmt::Kind::kScope: {
        const Inner inner(*this, scope_.get());
        return run_block(statement.body, out);
      }
      case Stmt::Kind::kBreak:
        return Flow::kBreak;
      case Stmt::Kind::kContinue:
        return Flow::kContinue;
    }
    machine_.fail("a statement of no known kind");
  }

  void append(const std::string& text, std::string& out) {
    machine_.charge(text.size());
    out += text;
  }

  std::string captured(const Block& body) {
    const Inner inner(*this, scope_.get());
    std::string text;
    run_block(body, text);
    return text;
  }

  Flow run_for(const Stmt& statement, std::string& out) {
    const auto state = std::make_shared<LoopState>();
    for (Value& item : machine_.iterate(evaluate(*statement.expr))) {
      if (statement.test) {
        const Inner inner(*this, scope_.get());
        assign(statement.target, item);
        if (!evaluate(*statement.test).truthy()) continue;
      }
      state->items.push_back(std::move(item));
    }
    for (state->index = 0; state->index < state->items.size(); ++state->index) {
      const Inner inner(*this, scope_.get());
      machine_.set_line(statement.line);
      machine_.charge(kScopeCost);
      scope_->names["loop"] = Value(state);
      assign(statement.target, state->items[state->index]);
      if (run_block(statement.body, out) == Flow::kBreak) break;
    }
    if (!state->items.empty() || statement.other.empty()) return Flow::kOn;
    const Inner inner(*this, scope_.get());
    return run_block(statement.other, out);
  }

  void assign(const Target& target, Value value) {
    if (!target.attribute.empty()) {
      const Value* owner = find_name(target.names[0]);
      if (owner == nullptr || owner->name_space() == nullptr) {
        machine_.fail("'" + printable(target.names[0], 60) +
                      "' is no namespace, so nothing can be set in it");
      }
      if (target.attribute.starts_with("_")) {
        machine_.fail("'" + printable(target.attribute, 60) + "' may not be set in a namespace");
      }
      owner->name_space()->attributes.set(target.attribute, std::move(value));
      return;
    }
    if (!target.is_tuple) {
      scope_->names[target.names[0]] = std::move(value);
      return;
    }
    std::vector<Value> items = machine_.iterate(value);
    if (items.size() != target.names.size()) {
      machine_.fail(std::to_string(items.size()) + " values for " +
                    std::to_string(target.names.size()) + " names");
    }
    for (size_t i = 0; i < items.size(); ++i) scope_->names[target.names[i]] = std::move(items[i]);
  }

  void define_macro(const Stmt& statement) {
    // Scopes are left before the rendering ends, but for the outermost.
    if (scope_->outer != nullptr) {
      machine_.fail("a macro inside a loop, a macro or a block is not supported");
    }
    scope_->names[statement.text] =
        Value(std::make_shared<const MacroDefinition>(MacroDefinition{&statement, scope_.get()}));
  }

  // --- expressions ---

  const Value* find_name(const std::string& name) const {
    for (const Scope* scope = scope_.get(); scope != nullptr; scope = scope->outer) {
      const auto found = scope->names.find(name);
      if (found != scope->names.end()) return &found->second;
    }
    return nullptr;
  }

  Value evaluate(const Expr& expr) {
    machine_.set_line(expr.line);
    machine_.charge();
    switch (expr.kind) {
      case Expr::Kind::kConst:
        return expr.value;
      case Expr::Kind::kName:
        return name_value(expr);
      case Expr::Kind::kList:
      case Expr::Kind::kTuple: {
        std::vector<Value> items;
        for (const auto& child : expr.children) items.push_back(evaluate(*child));
        return machine_.list(std::move(items), expr.kind == Expr::Kind::kTuple);
      }
      case Expr::Kind::kDict:
        return dict_value(expr);
      case Expr::Kind::kAttribute: {
        const Value object = evaluate(*expr.children[0]);
        machine_.set_line(expr.line);
        return machine_.attribute(object, expr.name);
      }
      case Expr::Kind::kItem: {
        const Value object = evaluate(*expr.children[0]), key = evaluate(*expr.children[1]);
        machine_.set_line(expr.line);
        return machine_.item(object, key);
      }
      case Expr::Kind::kSlice:
        return slice(expr);
      case Expr::Kind::kCall:
        return call(expr);
      case Expr::Kind::kFilter:
        return apply_filters(expr, Value());
      case Expr::Kind::kTest:
        return Value(test(expr));
      case Expr::Kind::kNot:
        return Value(!evaluate(*expr.children[0]).truthy());
      case Expr::Kind::kNegative:
      case Expr::Kind::kPositive:
        return signed_value(expr);
      case Expr::Kind::kAnd: {
        Value left = evaluate(*expr.children[0]);
        return left.truthy() ? evaluate(*expr.children[1]) : left;
      }
      case Expr::Kind::kOr: {
        Value left = evaluate(*expr.children[0]);
        return left.truthy() ? left : evaluate(*expr.children[1]);
      }
      case Expr::Kind::kConditional:
        if (evaluate(*expr.children[1]).truthy()) return evaluate(*expr.children[0]);
        return expr.children[2] ? evaluate(*expr.children[2]) : Value(Undefined{"if without else"});
      case Expr::Kind::kCompare:
        return Value(compare_chain(expr));
      case Expr::Kind::kArithmetic:
        return arithmetic(expr);
      case Expr::Kind::kConcat: {
        std::string text;
        for (const auto& child : expr.children) text += to_text(evaluate(*child));
        return machine_.text(std::move(text));
      }
    }
    machine_.fail("an expression of no known kind");
  }

  Value name_value(const Expr& expr) const {
    if (const Value* value = find_name(expr.name)) return *value;
    if (is_function(expr.name) ||
        std::find(kUnsupportedFunctions.begin(), kUnsupportedFunctions.end(), expr.name) !=
            kUnsupportedFunctions.end()) {
      machine_.fail("the function '" + expr.name + "' without a call is not supported");
    }
    return Undefined{expr.name};
  }

  Value dict_value(const Expr& expr) {
    Dict dict;
    for (size_t i = 0; i < expr.children.size(); i += 2) {
      const Value key = evaluate(*expr.children[i]);
      if (!key.is_string())
        machine_.fail("a dict with a key of type " + key.type_name() + " is not supported");
      machine_.charge(dict.items.size() + 16);
      dict.set(key.string(), evaluate(*expr.children[i + 1]));
    }
    return Value(std::move(dict));
  }

  Value signed_value(const Expr& expr) {
    const Value value = evaluate(*expr.children[0]);
    if (!value.is_number()) machine_.fail("the sign of a " + value.type_name());
    if (expr.kind == Expr::Kind::kPositive) {
      return value.is_float() ? value : Value(value.integer());
    }
    if (value.is_float()) return Value(-value.real());
    if (value.integer() == INT64_MIN) machine_.fail("a number beyond 64 bits");
    return Value(-value.integer());
  }

  bool compare_chain(const Expr& expr) {
    Value left = evaluate(*expr.children[0]);
    for (size_t i = 0; i < expr.operators.size(); ++i) {
      Value right = evaluate(*expr.children[i + 1]);
      machine_.set_line(expr.line);
      if (!compare_two(expr.operators[i], left, right)) return false;
      left = std::move(right);
    }
    return true;
  }

  bool compare_two(const std::string& op, const Value& left, const Value& right) {
    if (op == "==") return equal(left, right);
    if (op == "!=") return !equal(left, right);
    if (op == "in") return contains(machine_, right, left);
    if (op == "not in") return !contains(machine_, right, left);
    const auto order = compare(left, right);
    if (!order) {
      machine_.fail("'" + op + "' between " + left.type_name() + " and " + right.type_name());
    }
    if (op == "<") return *order < 0;
    if (op == "<=") return *order <= 0;
    return op == ">" ? *order > 0 : *order >= 0;
  }

  Value arithmetic(const Expr& expr) {
    const Value left = evaluate(*expr.children[0]), right = evaluate(*expr.children[1]);
    machine_.set_line(expr.line);
    const std::string& op = expr.name;
    if (op == "%" && left.is_string()) machine_.fail("'%' behind a text is not supported");
    for (const Value* side : {&left, &right}) {
      if (side->is_undefined()) {
        machine_.fail("'" + printable(side->undefined_name(), 60) + "' is undefined");
      }
    }
    if (op == "+" && left.is_string() && right.is_string()) {
      machine_.charge(left.string().size() + right.string().size());
      return Value(left.string() + right.string());
    }
    if (op == "+" && left.is_list() && right.is_list() &&
        left.list()->is_tuple == right.list()->is_tuple) {
      std::vector<Value> items = machine_.iterate(left);
      for (Value& item : machine_.iterate(right)) items.push_back(std::move(item));
      return machine_.list(std::move(items), left.list()->is_tuple);
    }
    if (op == "*" && left.is_list() && right.is_int()) return repeat_list(*left.list(), right);
    if (op == "*" && right.is_list() && left.is_int()) return repeat_list(*right.list(), left);
    if (op == "*" && left.is_string() && right.is_int()) return repeat(left.string(), right);
    if (op == "*" && right.is_string() && left.is_int()) return repeat(right.string(), left);
    if (!left.is_number() || !right.is_number()) {
      machine_.fail("'" + op + "' between " + left.type_name() + " and " + right.type_name());
    }
    if (op == "/" || left.is_float() || right.is_float()) return real_arithmetic(op, left, right);
    return integer_arithmetic(op, left.integer(), right.integer());
  }

  Value repeat(const std::string& text, const Value& count) {
    const int64_t times = std::max<int64_t>(0, count.integer());
    if (times > 0 && text.size() > (size_t{1} << 26) / static_cast<size_t>(times)) {
      machine_.fail("a text repeated beyond 64 MiB");
    }
    machine_.charge(text.size() * static_cast<size_t>(times));
    std::string out;
    for (int64_t i = 0; i < times; ++i) out += text;
    return Value(std::move(out));
  }

  Value repeat_list(const List& list, const Value& count) {
    std::vector<Value> items;
    for (int64_t i = 0; i < count.integer() && !list.items.empty(); ++i) {
      machine_.charge(list.items.size() * 16);
      items.insert(items.end(), list.items.begin(), list.items.end());
    }
    return machine_.list(std::move(items), list.is_tuple);
  }

  Value real_arithmetic(const std::string& op, const Value& left, const Value& right) const {
    const double a = left.real(), b = right.real();
    if (op == "+") return Value(a + b);
    if (op == "-") return Value(a - b);
    if (op == "*") return Value(a * b);
    if (op == "/") {
      if (b == 0) machine_.fail("division by zero");
      return Value(a / b);
    }
    machine_.fail("'" + op + "' of fractions is not supported");
  }

  Value integer_arithmetic(const std::string& op, int64_t a, int64_t b) const {
    int64_t result = 0;
    bool overflow = false;
    if (op == "+") {
      overflow = __builtin_add_overflow(a, b, &result);
    } else if (op == "-") {
      overflow = __builtin_sub_overflow(a, b, &result);
    } else if (op == "*") {
      overflow = __builtin_mul_overflow(a, b, &result);
    } else if (op == "**") {
      if (b < 0) machine_.fail("a negative power is not supported");
      // Beyond 1 the result soon leaves 64 bits; below, only the parity of the exponent counts.
      if (a >= -1 && a <= 1) b = b == 0 ? 0 : 2 - b % 2;
      result = 1;
      for (int64_t i = 0; i < b && !overflow; ++i) {
        overflow = __builtin_mul_overflow(result, a, &result);
      }
    } else {
      if (b == 0) machine_.fail("division by zero");
      overflow = a == INT64_MIN && b == -1;
      if (!overflow) {
        // Python rounds down, and the remainder has the divisor's sign.
        const bool down = a % b != 0 && (a < 0) != (b < 0);
        result = op == "//" ? a / b - (down ? 1 : 0) : a % b + (down ? b : 0);
      }
    }
    if (overflow) machine_.fail("a number beyond 64 bits");
    return Value(result);
  }

  Value slice(const Expr& expr) {
    const Value object = evaluate(*expr.children[0]);
    std::array<std::optional<int64_t>, 3> bounds;
    for (size_t i = 0; i < 3; ++i) {
      if (!expr.children[i + 1]) continue;
      const Value bound = evaluate(*expr.children[i + 1]);
      if (!bound.is_none()) bounds[i] = machine_.need_integer(bound, "a slice");
    }
    machine_.set_line(expr.line);
    if (object.is_undefined()) machine_.attribute(object, "slice");
    if (!object.is_string() && !object.is_list()) {
      machine_.fail("a slice of a value of type " + object.type_name() + " is not supported");
    }
    const std::vector<Value> items = machine_.iterate(object);
    const auto size = static_cast<int64_t>(items.size());
    const int64_t step = bounds[2].value_or(1);
    if (step == 0) machine_.fail("a slice of step 0");
    const auto place = [&](std::optional<int64_t> bound, int64_t fallback) {
      if (!bound) return fallback;
      const int64_t at = *bound < 0 ? *bound + size : *bound;
      return step > 0 ? std::clamp<int64_t>(at, 0, size) : std::clamp<int64_t>(at, -1, size - 1);
    };
    const int64_t begin = place(bounds[0], step > 0 ? 0 : size - 1);
    const int64_t end = place(bounds[1], step > 0 ? size : -1);
    std::vector<Value> out;
    for (int64_t i = begin; step > 0 ? i < end : i > end;) {
      out.push_back(items[static_cast<size_t>(i)]);
      if (__builtin_add_overflow(i, step, &i)) break;
    }
    if (!object.is_string()) return machine_.list(std::move(out), object.list()->is_tuple);
    std::string text;
    for (const Value& character : out) text += character.string();
    return machine_.text(std::move(text));
  }

  bool test(const Expr& expr) {
    const Expr& subject = *expr.children[0];
    // `strftime_now is defined`: functions have no value here, but they are there.
    if (subject.kind == Expr::Kind::kName && find_name(subject.name) == nullptr &&
        is_function(subject.name) &&
        (expr.name == "defined" || expr.name == "undefined" || expr.name == "callable")) {
      return expr.name != "undefined";
    }
    const Value value = evaluate(subject);
    Arguments arguments;
    for (size_t i = 1; i < expr.children.size(); ++i) {
      arguments.positional.push_back(evaluate(*expr.children[i]));
    }
    machine_.set_line(expr.line);
    return apply_test(machine_, expr.name, value, arguments);
  }

  /// The chain of filters that ends in `filter`; where it has no input of its own, on `input`.
  Value apply_filters(const Expr& filter, Value input) {
    if (filter.children[0]) {
      const Expr& inner = *filter.children[0];
      input = inner.kind == Expr::Kind::kFilter ? apply_filters(inner, std::move(input))
                                                : evaluate(inner);
    }
    const Arguments arguments = evaluate_arguments(filter);
    machine_.set_line(filter.line);
    return apply_filter(machine_, filter.name, input, arguments);
  }

  Arguments evaluate_arguments(const Expr& expr) {
    Arguments arguments;
    for (size_t i = 1; i < expr.children.size(); ++i) {
      arguments.positional.push_back(evaluate(*expr.children[i]));
    }
    for (const auto& [name, value] : expr.keywords) {
      arguments.named.emplace_back(name, evaluate(*value));
    }
    return arguments;
  }

  // --- calls ---

  Value call(const Expr& expr) {
    const Expr& callee = *expr.children[0];
    if (callee.kind == Expr::Kind::kName) {
      const Value* value = find_name(callee.name);
      if (value == nullptr) return call_function(callee.name, expr);
      const Value function = *value;
      return call_macro(function, callee.name, expr);
    }
    if (callee.kind == Expr::Kind::kAttribute) {
      const Value object = evaluate(*callee.children[0]);
      if (Namespace* space = object.name_space()) {
        const Value* found = space->attributes.find(callee.name);
        const Value function = found != nullptr ? *found : Value();
        return call_macro(function, callee.name, expr);
      }
      const Arguments arguments = evaluate_arguments(expr);
      machine_.set_line(expr.line);
      return call_method(machine_, object, callee.name, arguments);
    }
    machine_.fail("a call of what is neither a name nor a method is not supported");
  }

  Value call_macro(const Value& function, const std::string& name, const Expr& expr) {
    const MacroDefinition* macro = function.macro();
    if (macro == nullptr) {
      machine_.fail("'" + printable(name, 60) + "' is no macro, so it cannot be called");
    }
    const Arguments arguments = evaluate_arguments(expr);
    machine_.set_line(expr.line);
    std::vector<std::string_view> names;
    for (const auto& parameter : macro->statement->parameters) names.push_back(parameter.first);
    auto bound = machine_.bind("the macro '" + printable(name, 60) + "'", arguments, names);
    if (++calls_ > kMaxCalls) {
      machine_.fail("macros calling each other deeper than " + std::to_string(kMaxCalls));
    }
    std::string out;
    machine_.charge(kScopeCost);
    {
      const Inner inner(*this, macro->scope);
      for (size_t i = 0; i < bound.size(); ++i) {
        const auto& [parameter, fallback] = macro->statement->parameters[i];
        if (!bound[i]) bound[i] = fallback ? evaluate(*fallback) : Value(Undefined{parameter});
        scope_->names[parameter] = *bound[i];
      }
      run_block(macro->statement->body, out);
    }
    --calls_;
    machine_.set_line(expr.line);
    return machine_.text(std::move(out));
  }

  Value call_function(const std::string& name, const Expr& expr) {
    const Arguments arguments = evaluate_arguments(expr);
    machine_.set_line(expr.line);
    if (name == "raise_exception") {
      const auto bound = machine_.bind(name, arguments, {"message"});
      machine_.fail("the template refuses this conversation: " +
                    printable(bound[0] ? to_text(*bound[0]) : std::string(), 400));
    }
    if (name == "namespace" || name == "dict") return make_table(name, arguments);
    if (name == "range") return range(arguments);
    if (name == "strftime_now") return now(arguments);
    if (std::find(kUnsupportedFunctions.begin(), kUnsupportedFunctions.end(), name) !=
        kUnsupportedFunctions.end()) {
      machine_.fail("the function '" + name + "' is not supported");
    }
    machine_.fail("'" + printable(name, 60) + "' is undefined, so it cannot be called");
  }

  Value make_table(const std::string& name, const Arguments& arguments) {
    Dict dict;
    if (arguments.positional.size() > 1 ||
        (arguments.positional.size() == 1 && !arguments.positional[0].is_dict())) {
      machine_.fail("'" + name + "' of anything but names and one dict is not supported");
    }
    if (!arguments.positional.empty()) dict = *arguments.positional[0].dict();
    for (const auto& [key, value] : arguments.named) dict.set(key, value);
    machine_.charge(dict.items.size() * 16);
    if (name == "dict") return Value(std::move(dict));
    const auto space = std::make_shared<Namespace>();
    space->attributes = std::move(dict);
    namespaces_.push_back(space);
    return Value(space);
  }

  Value range(const Arguments& arguments) {
    if (arguments.positional.empty() || arguments.positional.size() > 3 ||
        !arguments.named.empty()) {
      machine_.fail("range takes one to three numbers");
    }
    std::vector<int64_t> numbers;
    for (const Value& value : arguments.positional) {
      numbers.push_back(machine_.need_integer(value, "range"));
    }
    const int64_t begin = numbers.size() > 1 ? numbers[0] : 0;
    const int64_t end = numbers.size() > 1 ? numbers[1] : numbers[0];
    const int64_t step = numbers.size() > 2 ? numbers[2] : 1;
    if (step == 0) machine_.fail("a range of step 0");
    std::vector<Value> out;
    for (int64_t i = begin; step > 0 ? i < end : i > end;) {
      if (static_cast<int64_t>(out.size()) == kMaxRange) {
        machine_.fail("a range of more than " + std::to_string(kMaxRange) + " numbers");
      }
      out.push_back(Value(i));
      if (__builtin_add_overflow(i, step, &i)) break;
    }
    return machine_.list(std::move(out));
  }

  Value now(const Arguments& arguments) {
    const auto bound = machine_.bind("strftime_now", arguments, {"format"});
    if (!bound[0]) machine_.fail("strftime_now needs a format");
    const std::string& format = machine_.need_string(*bound[0], "strftime_now");
    const std::time_t time = std::time(nullptr);
    std::tm parts{};
    localtime_r(&time, &parts);
    std::array<char, 512> buffer;
    const size_t size = std::strftime(buffer.data(), buffer.size(), format.c_str(), &parts);
    if (size == 0 && !format.empty()) machine_.fail("a date of more than 500 characters");
    return machine_.text(std::string(buffer.data(), size));
  }

  Machine machine_;
  std::shared_ptr<Scope> scope_;
  std::vector<std::shared_ptr<Namespace>> namespaces_;
  int calls_ = 0;
};

}  // namespace

Template::Template(std::string_view source, std::string where) {
  constexpr size_t kMaxBytes = size_t{1} << 20;
  if (source.size() > kMaxBytes) throw_invalid(where, "a chat template of more than 1 MiB");
  auto parsed = std::make_unique<ParsedTemplate>();
  parsed->where = std::move(where);
  parsed->block = parse_template(source, parsed->where);
  parsed_ = std::move(parsed);
}
Template::~Template() = default;
Template::Template(Template&&) noexcept = default;
Template& Template::operator=(Template&&) noexcept = default;

std::string Template::render(const Dict& variables) const {
  return Interpreter(*parsed_).run(parsed_->block, variables);
}

}  // namespace llmctl::runtime::chat
