#include "runtime/tokenizer/pre_tokenizer.h"

#include <utility>

#include "runtime/tokenizer/byte_level.h"
#include "runtime/tokenizer/pattern.h"
#include "runtime/tokenizer/unicode.h"

namespace llmctl::runtime::tokenizer {

namespace {

/// What becomes of the matches of a split.
enum class Behavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };

Behavior read_behavior(const Component& component, const std::string& fallback) {
  const std::string name = component.text_or("behavior", fallback);
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  if (name == "Contiguous") return Behavior::kContiguous;
  component.refuse("split behavior '" + name + "' is not supported");
}

/// Turns matches and gaps into the pieces to keep (is_match then means "drop"), as
/// NormalizedString::split of the tokenizers library does.
void resolve(Behavior behavior, std::vector<Span>& spans) {
  if (behavior == Behavior::kRemoved) return;
  if (behavior == Behavior::kIsolated) {
    for (Span& span : spans) span.is_match = false;
    return;
  }
  std::vector<Span> out;
  bool previous_match = false;
  if (behavior == Behavior::kMergedWithNext) {
    for (size_t i = spans.size(); i-- > 0;) {
      const Span& span = spans[i];
      if (span.is_match && !previous_match && !out.empty()) {
        out.back().begin = span.begin;
      } else {
        out.push_back({span.begin, span.end, false});
      }
      previous_match = span.is_match;
    }
    spans.assign(out.rbegin(), out.rend());
    return;
  }
  for (const Span& span : spans) {
    const bool joins = behavior == Behavior::kContiguous ? span.is_match == previous_match
                                                         : span.is_match && !previous_match;
    if (joins && !out.empty()) {
      out.back().end = span.end;
    } else {
      out.push_back({span.begin, span.end, false});
    }
    previous_match = span.is_match;
  }
  spans = std::move(out);
}

void split_pieces(PieceList& list, const Pattern& pattern, bool invert, Behavior behavior) {
  std::vector<Piece> pieces;
  std::vector<Span> spans;
  for (const Piece& piece : list.pieces) {
    spans.clear();
    pattern.find(std::string_view(list.text).substr(piece.begin, piece.end - piece.begin), spans);
    if (invert) {
      for (Span& span : spans) span.is_match = !span.is_match;
    }
    resolve(behavior, spans);
    for (const Span& span : spans) {
      if (span.is_match || span.begin == span.end) continue;
      pieces.push_back(
          {piece.begin + span.begin, piece.begin + span.end, piece.at_start && span.begin == 0});
    }
  }
  list.pieces = std::move(pieces);
}

class Split : public PreTokenizer {
 public:
  Split(std::unique_ptr<Pattern> pattern, bool invert, Behavior behavior)
      : pattern_(std::move(pattern)), invert_(invert), behavior_(behavior) {}
  void apply(PieceList& list) const override { split_pieces(list, *pattern_, invert_, behavior_); }

 private:
  std::unique_ptr<Pattern> pattern_;
  bool invert_;
  Behavior behavior_;
};

constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

class ByteLevel : public PreTokenizer {
 public:
  explicit ByteLevel(const Component& component)
      : add_prefix_space_(component.flag("add_prefix_space", true)) {
    if (component.flag("use_regex", true)) regex_ = make_regex(kGpt2Pattern, component.where());
  }

  void apply(PieceList& list) const override {
    if (add_prefix_space_) add_prefix_space(list);
    if (regex_) split_pieces(list, *regex_, false, Behavior::kIsolated);
    PieceList out;
    out.text.reserve(list.text.size() + list.text.size() / 2);
    out.pieces.reserve(list.pieces.size());
    for (const Piece& piece : list.pieces) {
      const size_t begin = out.text.size();
      append_byte_level(std::string_view(list.text).substr(piece.begin, piece.end - piece.begin),
                        out.text);
      out.pieces.push_back({begin, out.text.size(), piece.at_start});
    }
    list = std::move(out);
  }

 private:
  static void add_prefix_space(PieceList& list) {
    PieceList out;
    for (const Piece& piece : list.pieces) {
      const size_t begin = out.text.size();
      if (list.text[piece.begin] != ' ') out.text += ' ';
      out.text.append(list.text, piece.begin, piece.end - piece.begin);
      out.pieces.push_back({begin, out.text.size(), piece.at_start});
    }
    list = std::move(out);
  }

  bool add_prefix_space_;
  std::unique_ptr<Pattern> regex_;
};

class Metaspace : public PreTokenizer {
 public:
  explicit Metaspace(const Component& component)
      : replacement_(component.text_or("replacement", "▁")), split_(component.flag("split", true)) {
    size_t length = 0;
    if (!replacement_.empty()) mark_ = next_code_point(replacement_, length);
    if (replacement_.empty() || length != replacement_.size()) {
      component.refuse("'replacement' must be one character");
    }
    std::string scheme = component.text_or("prepend_scheme", "always");
    // The older key; only false contradicts the default.
    if (!component.flag("add_prefix_space", true)) {
      if (component.has("prepend_scheme") && scheme != "never") {
        component.refuse("add_prefix_space false contradicts prepend_scheme '" + scheme + "'");
      }
      scheme = "never";
    }
    if (scheme == "always") {
      prepend_ = Prepend::kAlways;
    } else if (scheme == "first") {
      prepend_ = Prepend::kFirst;
    } else if (scheme == "never") {
      prepend_ = Prepend::kNever;
    } else {
      component.refuse("prepend_scheme '" + scheme + "' is not supported");
    }
    pattern_ = make_character_pattern([mark = mark_](char32_t c) { return c == mark; });
  }

  void apply(PieceList& list) const override {
    PieceList out;
    for (const Piece& piece : list.pieces) {
      const size_t begin = out.text.size();
      const std::string_view text =
          std::string_view(list.text).substr(piece.begin, piece.end - piece.begin);
      const bool prepend =
          prepend_ == Prepend::kAlways || (prepend_ == Prepend::kFirst && piece.at_start);
      if (prepend && text.front() != ' ' && !text.starts_with(replacement_)) {
        out.text += replacement_;
      }
      for (const char c : text) {
        if (c == ' ') {
          out.text += replacement_;
        } else {
          out.text += c;
        }
      }
      out.pieces.push_back({begin, out.text.size(), piece.at_start});
    }
    list = std::move(out);
    if (split_) split_pieces(list, *pattern_, false, Behavior::kMergedWithNext);
  }

 private:
  enum class Prepend { kAlways, kFirst, kNever };

  std::string replacement_;
  char32_t mark_ = 0;
  Prepend prepend_ = Prepend::kAlways;
  bool split_;
  std::unique_ptr<Pattern> pattern_;
};

class Sequence : public PreTokenizer {
 public:
  explicit Sequence(const Component& component) {
    for (const Component& child : component.children("pretokenizers")) {
      parts_.push_back(read_pre_tokenizer(child));
    }
  }
  void apply(PieceList& list) const override {
    for (const auto& part : parts_) part->apply(list);
  }

 private:
  std::vector<std::unique_ptr<PreTokenizer>> parts_;
};

std::unique_ptr<PreTokenizer> split_on(std::unique_ptr<Pattern> pattern, bool invert,
                                       Behavior behavior) {
  return std::make_unique<Split>(std::move(pattern), invert, behavior);
}

}  // namespace

std::unique_ptr<PreTokenizer> read_pre_tokenizer(const Component& component) {
  const std::string type = component.type();
  if (type == "ByteLevel") return std::make_unique<ByteLevel>(component);
  if (type == "Metaspace") return std::make_unique<Metaspace>(component);
  if (type == "Sequence") return std::make_unique<Sequence>(component);
  if (type == "Split") {
    if (!component.has("behavior")) component.refuse("'behavior' is missing");
    return split_on(read_pattern(component), component.flag("invert", false),
                    read_behavior(component, {}));
  }
  if (type == "Digits") {
    return split_on(
        make_character_pattern(is_numeric), false,
        component.flag("individual_digits", false) ? Behavior::kIsolated : Behavior::kContiguous);
  }
  if (type == "Punctuation") {
    return split_on(make_character_pattern(is_punctuation), false,
                    read_behavior(component, "Isolated"));
  }
  if (type == "WhitespaceSplit") {
    return split_on(make_character_pattern(is_white_space), false, Behavior::kRemoved);
  }
  if (type == "Whitespace") {
    // \w+ or anything else that is not white space; the Rust regex crate's \w, with the joiners.
    return split_on(
        make_regex(R"([\w\x{200c}\x{200d}]+|[^\w\x{200c}\x{200d}\s]+)", component.where()), true,
        Behavior::kRemoved);
  }
  if (type == "CharDelimiterSplit") {
    const std::string delimiter = component.text("delimiter");
    size_t length = 0;
    const char32_t mark = delimiter.empty() ? 0 : next_code_point(delimiter, length);
    if (delimiter.empty() || length != delimiter.size()) {
      component.refuse("'delimiter' must be one character");
    }
    return split_on(make_character_pattern([mark](char32_t c) { return c == mark; }), false,
                    Behavior::kRemoved);
  }
  component.refuse_type("pre-tokenizer");
}

}  // namespace llmctl::runtime::tokenizer
