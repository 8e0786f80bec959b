#include <algorithm>
#include <cctype>
#include <set>

#include "formats/core/error.h"
#include "reshard/layout.h"

namespace llmctl::reshard {
namespace {

class Parser {
 public:
  explicit Parser(std::string_view line) : line_(line) {}

  Layout parse() {
    Layout layout;
    layout.text = line_;
    const size_t colon = line_.find(':');
    if (colon != std::string_view::npos) {
      layout.tensor = parse_name("a canonical tensor");
      check_tensor(layout.tensor);
      skip_blanks();
      expect(':');
    }
    inside_named_tensor_ = !layout.tensor.empty();
    layout.axes = parse_axes("\0");
    if (position_ != line_.size()) fail("the end of the line");
    if (layout.tensor.empty() && !saw_cat_) fail("'tensor :' in front, or one { | }");
    check_axes(layout);
    return layout;
  }

 private:
  [[noreturn]] void fail(const std::string& expected) const {
    throw_invalid("layout '" + printable(std::string(line_)) + "'",
                  "column " + std::to_string(position_ + 1) + ": expected " + expected,
                  "see docs/layout-notation.md");
  }

  void skip_blanks() {
    while (position_ < line_.size() && line_[position_] == ' ') ++position_;
  }
  char peek() const { return position_ < line_.size() ? line_[position_] : '\0'; }
  void expect(char c) {
    if (peek() != c) fail(std::string("'") + c + "'");
    ++position_;
  }

  std::string parse_name(const std::string& expected) {
    skip_blanks();
    const size_t begin = position_;
    while (std::isalnum(static_cast<unsigned char>(peek())) != 0 || peek() == '_') ++position_;
    if (begin == position_) fail(expected);
    return std::string(line_.substr(begin, position_ - begin));
  }

  int64_t parse_number() {
    int64_t n = 0;
    const size_t begin = position_;
    while (std::isdigit(static_cast<unsigned char>(peek())) != 0 && position_ - begin < 6) {
      n = n * 10 + (line_[position_++] - '0');
    }
    if (begin == position_) fail("a number");
    return n;
  }

  void check_tensor(const std::string& name) const {
    if (find_canonical(name) == nullptr) {
      throw_invalid("layout '" + printable(std::string(line_)) + "'",
                    "no canonical tensor is called '" + name + "'", "see docs/layout-notation.md");
    }
  }

  std::vector<LayoutNode> parse_axes(std::string_view stops) {
    if (++depth_ > 16) fail("no more than 16 nested brackets");
    std::vector<LayoutNode> axes;
    for (skip_blanks(); peek() != '\0' && stops.find(peek()) == std::string_view::npos;
         skip_blanks()) {
      LayoutNode node;
      if (peek() == '(') {
        ++position_;
        node.kind = LayoutNode::Kind::kGroup;
        node.group = parse_axes(")");
        expect(')');
      } else if (peek() == '{') {
        if (inside_named_tensor_ || saw_cat_) fail("a factor (tensors do not nest)");
        saw_cat_ = true;
        node.kind = LayoutNode::Kind::kCat;
        do {
          ++position_;
          LayoutNode::Branch branch;
          branch.tensor = parse_name("a canonical tensor");
          check_tensor(branch.tensor);
          branch.axes = parse_axes("|}");
          node.branches.push_back(std::move(branch));
        } while (peek() == '|');
        expect('}');
      } else {
        node.factor = parse_factor();
      }
      axes.push_back(std::move(node));
    }
    --depth_;
    return axes;
  }

  Factor parse_factor() {
    Factor factor;
    factor.name = parse_name("an axis, '(' or '{'");
    for (;;) {
      if (peek() == '~') {
        ++position_;
        factor.padded = true;
      } else if (peek() == '/') {
        ++position_;
        if (line_.substr(position_, 2) != "tp") fail("'tp'");
        position_ += 2;
        factor.tensor_parallel = true;
      } else if (peek() == '[') {
        ++position_;
        factor.part = parse_number();
        expect('/');
        factor.num_parts = parse_number();
        expect(']');
        if (factor.num_parts < 1 || factor.part >= factor.num_parts) fail("[k/n] with k < n");
      } else {
        return factor;
      }
    }
  }

  static void collect(const std::vector<LayoutNode>& axes, std::multiset<std::string>& names) {
    for (const LayoutNode& node : axes) {
      if (node.kind == LayoutNode::Kind::kGroup) collect(node.group, names);
      if (node.kind != LayoutNode::Kind::kFactor) continue;
      if (node.factor.name == "heads") {
        names.insert({"kv", "group"});
      } else if (node.factor.name == "d") {
        names.insert({"two", "half"});
      } else {
        names.insert(node.factor.name);
      }
    }
  }

  /// Every axis of the tensor once, and none that is not its own.
  void check_axes_of(const std::string& tensor, const std::multiset<std::string>& names) const {
    const std::vector<std::string> wanted = split_words(find_canonical(tensor)->axes);
    for (const std::string& name : names) {
      const bool known = std::find(wanted.begin(), wanted.end(), name) != wanted.end();
      if (!known || names.count(name) != 1) {
        throw_invalid("layout '" + printable(std::string(line_)) + "'",
                      known ? "axis '" + name + "' of '" + tensor + "' is named twice"
                            : "'" + tensor + "' has no axis '" + name + "'",
                      "its axes are: " + std::string(find_canonical(tensor)->axes));
      }
    }
  }

  void check_axes(const Layout& layout) const {
    std::multiset<std::string> outer;
    collect(layout.axes, outer);
    if (!layout.tensor.empty()) return check_axes_of(layout.tensor, outer);
    const std::vector<LayoutNode>* level = &layout.axes;
    check_cat(*level, outer);
  }

  void check_cat(const std::vector<LayoutNode>& axes,
                 const std::multiset<std::string>& outer) const {
    for (const LayoutNode& node : axes) {
      if (node.kind == LayoutNode::Kind::kGroup) check_cat(node.group, outer);
      for (const LayoutNode::Branch& branch : node.branches) {
        std::multiset<std::string> names = outer;
        collect(branch.axes, names);
        check_axes_of(branch.tensor, names);
      }
    }
  }

  std::string_view line_;
  size_t position_ = 0;
  int depth_ = 0;
  bool saw_cat_ = false, inside_named_tensor_ = false;
};

void collect_tensors(const std::vector<LayoutNode>& axes, std::vector<std::string>& out) {
  for (const LayoutNode& node : axes) {
    collect_tensors(node.group, out);
    for (const LayoutNode::Branch& branch : node.branches) out.push_back(branch.tensor);
  }
}

bool any_tensor_parallel(const std::vector<LayoutNode>& axes) {
  return std::any_of(axes.begin(), axes.end(), [](const LayoutNode& node) {
    return node.factor.tensor_parallel || any_tensor_parallel(node.group) ||
           std::any_of(node.branches.begin(), node.branches.end(),
                       [](const auto& branch) { return any_tensor_parallel(branch.axes); });
  });
}

}  // namespace

Layout parse_layout(std::string_view line) { return Parser(line).parse(); }

std::vector<std::string> Layout::tensors() const {
  if (!tensor.empty()) return {tensor};
  std::vector<std::string> names;
  collect_tensors(axes, names);
  return names;
}

bool Layout::uses_tensor_parallel() const { return any_tensor_parallel(axes); }

}  // namespace llmctl::reshard
