// What a SentencePiece model does to a text before it looks for pieces.
#pragma once

#include <array>
#include <string>
#include <string_view>

#include "runtime/tokenizer/charsmap.h"
#include "runtime/tokenizer/sentencepiece_proto.h"
#include "runtime/tokenizer/static_trie.h"

namespace llmctl::runtime::tokenizer {

inline constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";  // ▁

/// Maps characters, leaves out extra white space, and writes spaces as ▁ (sentencepiece
/// normalizer.cc). User-defined pieces are not mapped. Immutable; safe to share.
class SentencePieceNormalizer {
 public:
  /// `user_defined` finds the user-defined pieces and must outlive this. Throws kInvalidInput,
  /// naming `where`, for a broken character map.
  SentencePieceNormalizer(const SentencePieceProto& proto, const StaticTrie& user_defined,
                          const std::string& where);

  /// Requires: valid UTF-8. The result is valid UTF-8.
  std::string normalize(std::string_view text) const;

 private:
  struct Front {
    size_t length;          ///< of what is read
    std::string_view text;  ///< what it becomes
  };
  Front front(std::string_view text) const;
  bool is_plain(std::string_view text, size_t i) const;

  const StaticTrie& user_defined_;
  CharsMap map_;
  bool add_dummy_prefix_, remove_extra_whitespaces_;
  std::string_view space_;
  /// Bytes that stand for themselves: no user-defined piece begins with them, and no key of the map
  /// unless a byte that is not ASCII follows.
  std::array<bool, 256> plain_{};
};

}  // namespace llmctl::runtime::tokenizer
