// UTF-8 and the Unicode character classes that tokenizers speak of.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace llmctl::runtime::tokenizer {

/// What the front of a byte string is.
enum class Utf8Kind {
  kCharacter,  ///< one whole character of `length` bytes
  kInvalid,    ///< a maximal invalid run of `length` bytes (one U+FFFD in the Unicode practice)
  kTruncated,  ///< a prefix of a character, cut off by the end of the bytes
};
struct Utf8Front {
  Utf8Kind kind;
  size_t length;
  char32_t code_point;  ///< only for kCharacter
};

/// Classifies the front of `bytes`. Requires: not empty.
Utf8Front classify_utf8(std::string_view bytes);

bool is_valid_utf8(std::string_view bytes);

/// `bytes` with each maximal invalid run replaced by U+FFFD (as Rust's from_utf8_lossy, Python's
/// errors="replace" and WHATWG do it).
std::string to_valid_utf8(std::string_view bytes);

/// Repairs a byte stream that arrives in parts, as to_valid_utf8 would the whole. Not thread-safe.
class Utf8Repairer {
 public:
  /// Appends to `text` the characters that `bytes` completes.
  void push(std::string_view bytes, std::string& text);
  /// Appends U+FFFD if an unfinished character is held back.
  void finish(std::string& text);

 private:
  std::string pending_;
};

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

/// Appends the UTF-8 of `code_point`. Requires: a Unicode scalar value.
void append_utf8(char32_t code_point, std::string& text);

/// Reads the character at `position` and moves past it. Requires: valid UTF-8.
char32_t next_code_point(std::string_view text, size_t& position);

/// Where the character that ends at `end` begins. Requires: valid UTF-8, end > 0.
size_t character_before(std::string_view text, size_t end);

/// Property White_Space.
bool is_white_space(char32_t c);
/// `\w` as the Rust regex crate has it: Alphabetic, M, Nd, Pc, Join_Control.
bool is_word_character(char32_t c);
/// General categories Nd, Nl, No.
bool is_numeric(char32_t c);
/// ASCII punctuation (symbols included) or a general category P.
bool is_punctuation(char32_t c);
/// General categories Mn, Mc, Me.
bool is_combining_mark(char32_t c);

/// The full lower-case mapping of `c`, without context (no final sigma).
void append_lowercase(char32_t c, std::string& text);

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };
/// `text` in a Unicode normalisation form (utf8proc). Requires: valid UTF-8.
std::string normalize_unicode(std::string_view text, NormalForm form);

}  // namespace llmctl::runtime::tokenizer
