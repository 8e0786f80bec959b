// Tokens that are found in the text before the model sees it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/tokenizer/byte_trie.h"

namespace llmctl::runtime::tokenizer {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false;  ///< only where no word character stands next to it
  bool lstrip = false;       ///< swallows the white space before it
  bool rstrip = false;       ///< swallows the white space behind it
  bool normalized = true;    ///< searched in the normalised text, in its own normalised form
  bool special = false;      ///< left out by skip_special_tokens
};

/// Bytes [begin, end) of a text: a token, or text between tokens (id -1).
struct Segment {
  size_t begin, end;
  int32_t id;
};

/// Finds the leftmost, then longest tokens that do not overlap. Immutable; safe to share.
class AddedTokenMatcher {
 public:
  /// Adds a token whose text form is `pattern`; the first of two equal patterns counts.
  void add(std::string_view pattern, const AddedToken& token);

  /// Cuts `text` (valid UTF-8). A match that single_word rejects is left as text and not retried
  /// with a shorter token, as in the tokenizers library. No segment is empty.
  void split(std::string_view text, std::vector<Segment>& segments) const;

 private:
  /// The length of the longest pattern at the front of `text`, and its token; 0 and null for none.
  std::pair<size_t, const AddedToken*> match_front(std::string_view text) const;

  ByteTrie trie_;  ///< pattern -> index into tokens_
  std::vector<AddedToken> tokens_;
  std::array<bool, 256> starts_{};  ///< bytes that some pattern begins with
};

}  // namespace llmctl::runtime::tokenizer
