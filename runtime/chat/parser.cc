#include <algorithm>
#include <charconv>
#include <cstdlib>

#include "formats/core/error.h"
#include "runtime/chat/filters.h"
#include "runtime/chat/lexer.h"
#include "runtime/chat/syntax.h"

namespace llmctl::runtime::chat {

namespace {

using ExprPtr = std::unique_ptr<Expr>;

constexpr int kMaxDepth = 100;
ExprPtr make(Expr::Kind kind, int line, std::string name = {}) {
  auto expr = std::make_unique<Expr>();
  expr->kind = kind;
  expr->line = line;
  expr->name = std::move(name);
  return expr;
}

template <typename... Children>
ExprPtr make_with(Expr::Kind kind, int line, std::string name, Children... children) {
  ExprPtr expr = make(kind, line, std::move(name));
  (expr->children.push_back(std::move(children)), ...);
  return expr;
}

/// Recursive descent in the order of precedence of jinja2/parser.py.
class Parser {
 public:
  Parser(std::vector<Token> tokens, const std::string& where)
      : tokens_(std::move(tokens)), where_(where) {}

  Block run() {
    Block block = parse_block({});
    return block;
  }

 private:
  /// Counts nesting, so that a hostile template cannot exhaust the stack.
  class Nested {
   public:
    explicit Nested(Parser& parser) : parser_(parser) {
      if (++parser_.depth_ > kMaxDepth) {
        parser_.fail("nested deeper than " + std::to_string(kMaxDepth) + " levels");
      }
    }
    ~Nested() { --parser_.depth_; }
    Nested(const Nested&) = delete;
    Nested& operator=(const Nested&) = delete;

   private:
    Parser& parser_;
  };

  const Token& current() const { return tokens_[at_]; }
  const Token& look() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  int line() const { return current().line; }
  Token take() {
    Token token = current();
    if (token.kind != Token::Kind::kEnd) ++at_;
    return token;
  }
  [[noreturn]] void fail(const std::string& what) const {
    throw_template_error(where_, line(), what);
  }
  [[noreturn]] void fail_unsupported(const std::string& what) const {
    throw_template_error(where_, line(), what + " is not supported",
                         "docs/tokenizers.md lists what is");
  }

  bool is_operator(std::string_view text) const {
    return current().kind == Token::Kind::kOperator && current().text == text;
  }
  bool is_name(std::string_view text) const {
    return current().kind == Token::Kind::kName && current().text == text;
  }
  bool skip_operator(std::string_view text) {
    if (!is_operator(text)) return false;
    take();
    return true;
  }
  bool skip_name(std::string_view text) {
    if (!is_name(text)) return false;
    take();
    return true;
  }
  std::string describe() const {
    switch (current().kind) {
      case Token::Kind::kEnd:
        return "the end of the template";
      case Token::Kind::kData:
      case Token::Kind::kPrint:
      case Token::Kind::kBlock:
        return "text";
      case Token::Kind::kPrintEnd:
        return "'}}'";
      case Token::Kind::kBlockEnd:
        return "'%}'";
      default:
        return "'" + printable(current().text, 40) + "'";
    }
  }
  void expect_operator(std::string_view text) {
    if (!skip_operator(text)) fail("'" + std::string(text) + "' expected, not " + describe());
  }
  std::string expect_name() {
    if (current().kind != Token::Kind::kName) fail("a name expected, not " + describe());
    return take().text;
  }
  void expect_block_end() {
    if (current().kind != Token::Kind::kBlockEnd) fail("'%}' expected, not " + describe());
    take();
  }

  // --- statements ---

  /// Statements up to a tag in `ends`, whose name is left as the current token; up to the end of
  /// the template when `ends` is empty.
  Block parse_block(const std::vector<std::string_view>& ends) {
    const Nested nested(*this);
    Block block;
    while (true) {
      switch (current().kind) {
        case Token::Kind::kEnd:
          if (!ends.empty()) fail("'" + std::string(ends.back()) + "' is missing");
          return block;
        case Token::Kind::kData: {
          auto stmt = make_stmt(Stmt::Kind::kText);
          stmt->text = take().text;
          block.push_back(std::move(stmt));
          break;
        }
        case Token::Kind::kPrint: {
          auto stmt = make_stmt(Stmt::Kind::kPrint);
          take();
          stmt->expr = strip_safe(parse_tuple(true, {}));
          if (current().kind != Token::Kind::kPrintEnd) {
            fail("'}}' expected, not " + describe());
          }
          take();
          block.push_back(std::move(stmt));
          break;
        }
        case Token::Kind::kBlock: {
          take();
          if (current().kind != Token::Kind::kName) fail("a tag expected, not " + describe());
          if (std::find(ends.begin(), ends.end(), current().text) != ends.end()) return block;
          block.push_back(parse_statement());
          break;
        }
        default:
          fail("unexpected " + describe());
      }
    }
  }

  std::unique_ptr<Stmt> make_stmt(Stmt::Kind kind) const {
    auto stmt = std::make_unique<Stmt>();
    stmt->kind = kind;
    stmt->line = line();
    return stmt;
  }

  /// From the tag's name to behind the '%}' that ends the statement.
  std::unique_ptr<Stmt> parse_statement() {
    const std::string tag = current().text;
    std::unique_ptr<Stmt> stmt;
    if (tag == "if") {
      stmt = parse_if();
    } else if (tag == "for") {
      stmt = parse_for();
    } else if (tag == "set") {
      stmt = parse_set();
    } else if (tag == "macro") {
      stmt = parse_macro();
    } else if (tag == "filter") {
      stmt = make_stmt(Stmt::Kind::kFilterBlock);
      take();
      stmt->expr = parse_filters(nullptr, /*first=*/true);
      stmt->body = parse_body("endfilter");
    } else if (tag == "generation") {
      // transformers marks what the assistant said; the text is the same.
      stmt = make_stmt(Stmt::Kind::kScope);
      take();
      stmt->body = parse_body("endgeneration");
    } else if (tag == "break" || tag == "continue") {
      if (loops_ == 0) fail("'" + tag + "' outside of a loop");
      stmt = make_stmt(tag == "break" ? Stmt::Kind::kBreak : Stmt::Kind::kContinue);
      take();
    } else if (tag.starts_with("end") || tag == "elif" || tag == "else") {
      fail("'" + printable(tag, 40) + "' belongs to no open tag");
    } else {
      fail_unsupported("the tag '" + printable(tag, 40) + "'");
    }
    expect_block_end();
    return stmt;
  }

  /// Behind a tag's head: '%}', the body, and the name of the end tag.
  Block parse_body(std::string_view end) {
    expect_block_end();
    Block body = parse_block({end});
    take();
    return body;
  }

  std::unique_ptr<Stmt> parse_if() {
    auto stmt = make_stmt(Stmt::Kind::kIf);
    take();
    while (true) {
      ExprPtr condition = parse_tuple(false, {});
      expect_block_end();
      Block body = parse_block({"elif", "else", "endif"});
      stmt->branches.emplace_back(std::move(condition), std::move(body));
      const bool is_elif = is_name("elif"), is_else = is_name("else");
      take();
      if (is_elif) continue;
      if (is_else) stmt->branches.emplace_back(nullptr, parse_body("endif"));
      return stmt;
    }
  }

  std::unique_ptr<Stmt> parse_for() {
    auto stmt = make_stmt(Stmt::Kind::kFor);
    take();
    stmt->target = parse_target("in");
    if (!skip_name("in")) fail("'in' expected, not " + describe());
    stmt->expr = parse_tuple(false, "recursive");
    if (skip_name("if")) stmt->test = parse_expression();
    if (is_name("recursive")) fail_unsupported("a recursive loop");
    expect_block_end();
    ++loops_;
    stmt->body = parse_block({"else", "endfor"});
    --loops_;
    if (take().text == "else") stmt->other = parse_body("endfor");
    return stmt;
  }

  std::unique_ptr<Stmt> parse_set() {
    auto stmt = make_stmt(Stmt::Kind::kSet);
    take();
    stmt->target = parse_target({});
    if (skip_operator("=")) {
      stmt->expr = parse_tuple(true, {});
      return stmt;
    }
    stmt->kind = Stmt::Kind::kSetBlock;
    if (is_operator("|")) stmt->expr = parse_filters(nullptr, false);
    stmt->body = parse_body("endset");
    return stmt;
  }

  std::unique_ptr<Stmt> parse_macro() {
    auto stmt = make_stmt(Stmt::Kind::kMacro);
    take();
    stmt->text = expect_name();
    expect_operator("(");
    while (!is_operator(")")) {
      if (!stmt->parameters.empty()) expect_operator(",");
      if (is_operator(")")) break;
      std::string name = expect_name();
      ExprPtr fallback;
      if (skip_operator("=")) {
        fallback = parse_expression();
      } else if (!stmt->parameters.empty() && stmt->parameters.back().second) {
        fail("a parameter without a default behind one that has one");
      }
      stmt->parameters.emplace_back(std::move(name), std::move(fallback));
    }
    expect_operator(")");
    const int loops = std::exchange(loops_, 0);
    stmt->body = parse_body("endmacro");
    loops_ = loops;
    return stmt;
  }

  Target parse_target(std::string_view end) {
    Target target;
    const bool bracket = skip_operator("(");
    while (true) {
      target.names.push_back(expect_name());
      if (is_operator(".")) {
        if (target.names.size() > 1 || !end.empty()) fail_unsupported("this assignment");
        take();
        target.attribute = expect_name();
      }
      if (!skip_operator(",")) break;
      if (!target.attribute.empty()) fail_unsupported("this assignment");
      target.is_tuple = true;
      if ((bracket && is_operator(")")) || is_operator("=") || is_name(end)) break;
    }
    if (bracket) expect_operator(")");
    return target;
  }

  // --- expressions ---

  /// `{{ x | safe }}`: without autoescape the mark changes nothing where the value is printed.
  /// Elsewhere what is joined to it would be escaped; the interpreter refuses that.
  static ExprPtr strip_safe(ExprPtr expr) {
    while (expr->kind == Expr::Kind::kFilter && expr->name == "safe") {
      ExprPtr inner = std::move(expr->children[0]);
      expr = std::move(inner);
    }
    return expr;
  }

  bool ends_tuple(std::string_view end_name) const {
    return current().kind == Token::Kind::kPrintEnd || current().kind == Token::Kind::kBlockEnd ||
           is_operator(")") || (!end_name.empty() && is_name(end_name));
  }

  /// One expression, or several with commas between as a tuple.
  ExprPtr parse_tuple(bool with_conditional, std::string_view end_name, bool in_brackets = false) {
    const int start = line();
    ExprPtr tuple = make(Expr::Kind::kTuple, start);
    bool commas = false;
    while (!ends_tuple(end_name)) {
      tuple->children.push_back(with_conditional ? parse_expression() : parse_or());
      if (!skip_operator(",")) break;
      commas = true;
    }
    if (commas) return tuple;
    if (tuple->children.empty()) {
      if (!in_brackets) fail("an expression expected, not " + describe());
      return tuple;
    }
    return std::move(tuple->children[0]);
  }

  ExprPtr parse_expression() {
    const Nested nested(*this);
    ExprPtr expr = parse_or();
    while (is_name("if")) {
      const int start = take().line;
      ExprPtr condition = parse_or();
      ExprPtr other = skip_name("else") ? parse_expression() : nullptr;
      expr = make_with(Expr::Kind::kConditional, start, {}, std::move(expr), std::move(condition),
                       std::move(other));
    }
    return expr;
  }

  ExprPtr parse_or() {
    ExprPtr left = parse_and();
    while (is_name("or")) {
      const int start = take().line;
      ExprPtr right = parse_and();
      left = make_with(Expr::Kind::kOr, start, {}, std::move(left), std::move(right));
    }
    return left;
  }

  ExprPtr parse_and() {
    ExprPtr left = parse_not();
    while (is_name("and")) {
      const int start = take().line;
      ExprPtr right = parse_not();
      left = make_with(Expr::Kind::kAnd, start, {}, std::move(left), std::move(right));
    }
    return left;
  }

  ExprPtr parse_not() {
    if (!is_name("not")) return parse_compare();
    const Nested nested(*this);
    const int start = take().line;
    return make_with(Expr::Kind::kNot, start, {}, parse_not());
  }

  ExprPtr parse_compare() {
    const int start = line();
    ExprPtr first = parse_sum();
    ExprPtr compare;
    while (true) {
      std::string op;
      for (const char* name : {"==", "!=", "<=", ">=", "<", ">"}) {
        if (is_operator(name)) op = name;
      }
      if (is_name("in")) op = "in";
      if (is_name("not") && look().kind == Token::Kind::kName && look().text == "in") {
        take();
        op = "not in";
      }
      if (op.empty()) break;
      take();
      if (!compare) compare = make_with(Expr::Kind::kCompare, start, {}, std::move(first));
      compare->operators.push_back(op);
      compare->children.push_back(parse_sum());
    }
    return compare ? std::move(compare) : std::move(first);
  }

  ExprPtr parse_sum() {
    ExprPtr left = parse_concat();
    while (is_operator("+") || is_operator("-")) {
      const Token op = take();
      ExprPtr right = parse_concat();
      left =
          make_with(Expr::Kind::kArithmetic, op.line, op.text, std::move(left), std::move(right));
    }
    return left;
  }

  ExprPtr parse_concat() {
    const int start = line();
    ExprPtr first = parse_product();
    if (!is_operator("~")) return first;
    ExprPtr concat = make_with(Expr::Kind::kConcat, start, {}, std::move(first));
    while (skip_operator("~")) concat->children.push_back(parse_product());
    return concat;
  }

  ExprPtr parse_product() {
    ExprPtr left = parse_power();
    while (is_operator("*") || is_operator("/") || is_operator("//") || is_operator("%")) {
      const Token op = take();
      ExprPtr right = parse_power();
      left =
          make_with(Expr::Kind::kArithmetic, op.line, op.text, std::move(left), std::move(right));
    }
    return left;
  }

  ExprPtr parse_power() {
    ExprPtr left = parse_unary(true);
    while (is_operator("**")) {
      const Token op = take();
      ExprPtr right = parse_unary(true);
      left =
          make_with(Expr::Kind::kArithmetic, op.line, op.text, std::move(left), std::move(right));
    }
    return left;
  }

  ExprPtr parse_unary(bool with_filter) {
    const Nested nested(*this);
    ExprPtr node;
    if (is_operator("-") || is_operator("+")) {
      const Token op = take();
      const auto kind = op.text == "-" ? Expr::Kind::kNegative : Expr::Kind::kPositive;
      node = make_with(kind, op.line, {}, parse_unary(false));
    } else {
      node = parse_primary();
    }
    node = parse_postfix(std::move(node));
    return with_filter ? parse_filters_and_tests(std::move(node)) : std::move(node);
  }

  ExprPtr parse_primary() {
    const int start = line();
    switch (current().kind) {
      case Token::Kind::kName: {
        const std::string name = take().text;
        if (name == "true" || name == "True") return constant(start, true);
        if (name == "false" || name == "False") return constant(start, false);
        if (name == "none" || name == "None") return constant(start, Value());
        return make(Expr::Kind::kName, start, name);
      }
      case Token::Kind::kString: {
        std::string text;
        while (current().kind == Token::Kind::kString) text += take().text;
        return constant(start, std::move(text));
      }
      case Token::Kind::kInteger: {
        int64_t number = 0;
        const std::string text = current().text;
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
        if (error != std::errc() || end != text.data() + text.size()) {
          fail("the number " + printable(text, 40) + " is too large");
        }
        take();
        return constant(start, number);
      }
      case Token::Kind::kFloat:
        return constant(start, std::strtod(take().text.c_str(), nullptr));
      default:
        break;
    }
    if (skip_operator("(")) {
      ExprPtr inner = parse_tuple(true, {}, /*in_brackets=*/true);
      expect_operator(")");
      return inner;
    }
    if (skip_operator("[")) {
      ExprPtr list = make(Expr::Kind::kList, start);
      while (!is_operator("]")) {
        if (!list->children.empty()) expect_operator(",");
        if (is_operator("]")) break;
        list->children.push_back(parse_expression());
      }
      expect_operator("]");
      return list;
    }
    if (skip_operator("{")) {
      ExprPtr dict = make(Expr::Kind::kDict, start);
      while (!is_operator("}")) {
        if (!dict->children.empty()) expect_operator(",");
        if (is_operator("}")) break;
        dict->children.push_back(parse_expression());
        expect_operator(":");
        dict->children.push_back(parse_expression());
      }
      expect_operator("}");
      return dict;
    }
    fail("an expression expected, not " + describe());
  }

  static ExprPtr constant(int line, Value value) {
    ExprPtr expr = make(Expr::Kind::kConst, line);
    expr->value = std::move(value);
    return expr;
  }

  ExprPtr parse_postfix(ExprPtr node) {
    while (true) {
      const int start = line();
      if (skip_operator(".")) {
        if (current().kind == Token::Kind::kInteger) {
          node = make_with(Expr::Kind::kItem, start, {}, std::move(node), parse_primary());
        } else {
          node = make_with(Expr::Kind::kAttribute, start, expect_name(), std::move(node));
        }
      } else if (skip_operator("[")) {
        node = parse_subscript(std::move(node), start);
      } else if (is_operator("(")) {
        node = make_with(Expr::Kind::kCall, start, {}, std::move(node));
        parse_arguments(*node);
      } else {
        return node;
      }
    }
  }

  ExprPtr parse_subscript(ExprPtr node, int start) {
    ExprPtr first = is_operator(":") ? nullptr : parse_expression();
    if (!is_operator(":")) {
      if (is_operator(",")) fail_unsupported("a subscript of several values");
      expect_operator("]");
      return make_with(Expr::Kind::kItem, start, {}, std::move(node), std::move(first));
    }
    take();
    const auto part = [&]() -> ExprPtr {
      return is_operator(":") || is_operator("]") ? nullptr : parse_expression();
    };
    ExprPtr second = part();
    ExprPtr third = skip_operator(":") ? part() : nullptr;
    expect_operator("]");
    return make_with(Expr::Kind::kSlice, start, {}, std::move(node), std::move(first),
                     std::move(second), std::move(third));
  }

  /// "(...)" behind a function, filter or test, appended to `call`.
  void parse_arguments(Expr& call) {
    expect_operator("(");
    bool first = true;
    while (!is_operator(")")) {
      if (!first) expect_operator(",");
      first = false;
      if (is_operator(")")) break;
      if (is_operator("*") || is_operator("**"))
        fail_unsupported("'" + current().text + "' before an argument");
      if (current().kind == Token::Kind::kName && look().kind == Token::Kind::kOperator &&
          look().text == "=") {
        std::string name = take().text;
        take();
        call.keywords.emplace_back(std::move(name), parse_expression());
      } else {
        if (!call.keywords.empty()) fail("a positional argument behind a named one");
        call.children.push_back(parse_expression());
      }
    }
    expect_operator(")");
  }

  ExprPtr parse_filters_and_tests(ExprPtr node) {
    while (true) {
      if (is_operator("|")) {
        node = parse_filters(std::move(node), false);
      } else if (is_name("is")) {
        node = parse_test(std::move(node));
      } else if (is_operator("(")) {
        node = make_with(Expr::Kind::kCall, line(), {}, std::move(node));
        parse_arguments(*node);
      } else {
        return node;
      }
    }
  }

  /// "| name(...) | name ..."; with `first` the first bar is left out.
  ExprPtr parse_filters(ExprPtr node, bool first) {
    while (first || skip_operator("|")) {
      first = false;
      if (!is_known_filter(current().text)) {
        fail_unsupported("the filter '" + printable(current().text, 40) + "'");
      }
      const int start = line();
      ExprPtr filter = make_with(Expr::Kind::kFilter, start, expect_name(), std::move(node));
      if (is_operator(".")) fail_unsupported("a filter whose name has a point");
      if (is_operator("(")) parse_arguments(*filter);
      node = std::move(filter);
    }
    return node;
  }

  ExprPtr parse_test(ExprPtr node) {
    const int start = take().line;
    const bool negated = skip_name("not");
    if (!is_known_test(current().text)) {
      fail_unsupported("the test '" + printable(current().text, 40) + "'");
    }
    ExprPtr test = make_with(Expr::Kind::kTest, start, expect_name(), std::move(node));
    if (is_operator(".")) fail_unsupported("a test whose name has a point");
    const Token::Kind kind = current().kind;
    if (is_operator("(")) {
      parse_arguments(*test);
    } else if (kind == Token::Kind::kString || kind == Token::Kind::kInteger ||
               kind == Token::Kind::kFloat || is_operator("[") || is_operator("{") ||
               (kind == Token::Kind::kName && !is_name("else") && !is_name("or") &&
                !is_name("and"))) {
      if (is_name("is")) fail("'is' behind a test");
      test->children.push_back(parse_postfix(parse_primary()));
    }
    if (!test->keywords.empty()) fail_unsupported("a named argument of a test");
    return negated ? make_with(Expr::Kind::kNot, start, {}, std::move(test)) : std::move(test);
  }

  std::vector<Token> tokens_;
  const std::string& where_;
  size_t at_ = 0;
  int depth_ = 0, loops_ = 0;
};

}  // namespace

Block parse_template(std::string_view source, const std::string& where) {
  return Parser(tokenize_template(source, where), where).run();
}

}  // namespace llmctl::runtime::chat
