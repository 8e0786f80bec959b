// Finding the matches of a tokenizer.json pattern: {"Regex": ...} or {"String": ...}.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/tokenizer/component.h"

namespace llmctl::runtime::tokenizer {

/// A stretch of a text: bytes [begin, end), and whether the pattern matched it.
struct Span {
  size_t begin, end;
  bool is_match;
};

/// Cuts a text into matches and the gaps between them, in order, covering all of it.
/// Immutable; safe to share between threads.
class Pattern {
 public:
  virtual ~Pattern() = default;
  /// Appends the spans of `text` (valid UTF-8) to `spans`.
  virtual void find(std::string_view text, std::vector<Span>& spans) const = 0;
};

/// From the JSON under `owner`'s key "pattern": {"Regex": r} or {"String": s}.
std::unique_ptr<Pattern> read_pattern(const Component& owner);
/// An Oniguruma regular expression, run by PCRE2; kInvalidInput names `where`.
std::unique_ptr<Pattern> make_regex(std::string_view oniguruma, const std::string& where);
/// Each character for which `predicate` holds is one match.
std::unique_ptr<Pattern> make_character_pattern(std::function<bool(char32_t)> predicate);

}  // namespace llmctl::runtime::tokenizer
