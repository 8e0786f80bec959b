#include "runtime/tokenizer/pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <new>
#include <optional>
#include <utility>

#include "formats/core/error.h"
#include "runtime/tokenizer/regex_syntax.h"
#include "runtime/tokenizer/unicode.h"

namespace llmctl::runtime::tokenizer {

namespace {

void append_match(size_t begin, size_t end, size_t& previous, std::vector<Span>& spans) {
  if (previous != begin) spans.push_back({previous, begin, false});
  spans.push_back({begin, end, true});
  previous = end;
}

class LiteralPattern : public Pattern {
 public:
  explicit LiteralPattern(std::string text) : needle_(std::move(text)) {}

  void find(std::string_view text, std::vector<Span>& spans) const override {
    size_t previous = 0;
    for (size_t at = text.find(needle_); at != std::string_view::npos;
         at = text.find(needle_, at + needle_.size())) {
      append_match(at, at + needle_.size(), previous, spans);
    }
    if (previous != text.size()) spans.push_back({previous, text.size(), false});
  }

 private:
  std::string needle_;
};

class CharacterPattern : public Pattern {
 public:
  explicit CharacterPattern(std::function<bool(char32_t)> predicate)
      : predicate_(std::move(predicate)) {}

  void find(std::string_view text, std::vector<Span>& spans) const override {
    size_t previous = 0;
    for (size_t position = 0; position < text.size();) {
      const size_t begin = position;
      if (predicate_(next_code_point(text, position))) {
        append_match(begin, position, previous, spans);
      }
    }
    if (previous != text.size()) spans.push_back({previous, text.size(), false});
  }

 private:
  std::function<bool(char32_t)> predicate_;
};

struct FreePcre2 {
  void operator()(pcre2_code* p) const { pcre2_code_free(p); }
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
  void operator()(pcre2_compile_context* p) const { pcre2_compile_context_free(p); }
};

class RegexPattern : public Pattern {
 public:
  RegexPattern(std::string_view oniguruma, std::string where) : where_(std::move(where)) {
    const std::string pattern = pcre2_from_oniguruma(oniguruma, where_);
    const std::unique_ptr<pcre2_compile_context, FreePcre2> context(
        pcre2_compile_context_create(nullptr));
    // Oniguruma's '.', '^' and '$' know only the line feed.
    pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
    int error = 0;
    size_t offset = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &error, &offset,
                              context.get()));
    if (!code_) {
      throw_invalid(where_, "regular expression '" + printable(std::string(oniguruma)) +
                                "': " + message(error));
    }
    // Without a JIT for this machine PCRE2 interprets the same code.
    pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);
  }

  // Steps as the onig crate does: an empty match right behind the last match is skipped.
  void find(std::string_view text, std::vector<Span>& spans) const override {
    const std::unique_ptr<pcre2_match_data, FreePcre2> data(pcre2_match_data_create(1, nullptr));
    if (!data) throw std::bad_alloc();
    // The library does not ask what an empty text matches.
    if (text.empty()) return;
    size_t previous = 0, start = 0;
    std::optional<size_t> last_end;
    while (start <= text.size() && match(text, start, data.get())) {
      const size_t* bounds = pcre2_get_ovector_pointer(data.get());
      const size_t begin = bounds[0], end = bounds[1];
      if (begin == end && last_end == end) {
        if (start == text.size()) break;
        next_code_point(text, start);
        continue;
      }
      append_match(begin, end, previous, spans);
      start = end;
      last_end = end;
    }
    if (previous != text.size()) spans.push_back({previous, text.size(), false});
  }

 private:
  static std::string message(int error) {
    std::array<PCRE2_UCHAR, 256> text{};
    pcre2_get_error_message(error, text.data(), text.size());
    return reinterpret_cast<const char*>(text.data());
  }

  bool match(std::string_view text, size_t start, pcre2_match_data* data) const {
    const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    int result =
        pcre2_match(code_.get(), subject, text.size(), start, PCRE2_NO_UTF_CHECK, data, nullptr);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) {
      // The interpreter keeps its backtracking points on the heap.
      result = pcre2_match(code_.get(), subject, text.size(), start,
                           PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data, nullptr);
    }
    if (result == PCRE2_ERROR_NOMATCH) return false;
    if (result < 0) throw_invalid(where_, "matching the regular expression: " + message(result));
    return true;
  }

  std::string where_;
  std::unique_ptr<pcre2_code, FreePcre2> code_;
};

}  // namespace

std::unique_ptr<Pattern> make_regex(std::string_view oniguruma, const std::string& where) {
  return std::make_unique<RegexPattern>(oniguruma, where);
}

std::unique_ptr<Pattern> make_character_pattern(std::function<bool(char32_t)> predicate) {
  return std::make_unique<CharacterPattern>(std::move(predicate));
}

std::unique_ptr<Pattern> read_pattern(const Component& owner) {
  const Component pattern = owner.child("pattern");
  if (pattern.has("Regex") == pattern.has("String")) {
    pattern.refuse("either 'Regex' or 'String' expected");
  }
  if (pattern.has("Regex")) return make_regex(pattern.text("Regex"), pattern.where());
  const std::string needle = pattern.text("String");
  if (needle.empty()) pattern.refuse("an empty 'String' is not supported");
  return std::make_unique<LiteralPattern>(needle);
}

}  // namespace llmctl::runtime::tokenizer
