// SentencePiece's compiled character map: a trie of spellings, each with its replacement.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace llmctl::runtime::tokenizer {

/// A u32 size, a Darts double-array trie of that many bytes, and NUL-separated replacements
/// (sentencepiece normalizer.cc; the spm_precompiled crate). Immutable; safe to share.
class CharsMap {
 public:
  CharsMap() = default;  ///< maps nothing

  /// Returns what is wrong with `blob`, empty when it was read.
  std::string read(std::string_view blob);

  bool empty() const { return units_.empty(); }

  struct Match {
    size_t length;  ///< of the key
    std::string_view replacement;
  };
  /// The shortest key at the front of `text`.
  std::optional<Match> find_shortest(std::string_view text) const { return find(text, false); }
  /// The longest key at the front of `text`.
  std::optional<Match> find_longest(std::string_view text) const { return find(text, true); }
  /// Is `text` the beginning of a longer key?
  bool is_prefix(std::string_view text) const;

 private:
  std::optional<Match> find(std::string_view text, bool longest) const;

  std::vector<uint32_t> units_;
  std::string replacements_;
};

}  // namespace llmctl::runtime::tokenizer
