// Byte-pair encoding as SentencePiece does it.
#pragma once

#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/tokenizer/merge_table.h"
#include "runtime/tokenizer/sentencepiece_pieces.h"
#include "runtime/tokenizer/sentencepiece_sink.h"

namespace llmctl::runtime::tokenizer {

/// Two neighbours whose texts together are a piece may merge, the piece of the highest score first
/// and the leftmost on ties; user-defined pieces stay as they are (sentencepiece bpe_model.cc).
/// A symbol is the number of its piece, or for a character that is none but is part of pieces a
/// number behind those. Immutable; safe to share.
class SentencePieceBpe {
 public:
  /// With `merges` off the model is of characters. `pieces` must outlive this.
  SentencePieceBpe(const SentencePieces& pieces, bool merges);

  /// Requires: valid UTF-8.
  void encode(std::string_view text, SentencePieceSink& sink) const;

 private:
  std::vector<MergeTable::Rule> find_rules();
  void find_joints(const std::vector<MergeTable::Rule>& rules);
  /// The number of a symbol, made where a single character is no piece; -1 for other text.
  int32_t make_symbol(std::string_view text);
  int32_t find_character(char32_t c, std::string_view text) const;
  std::string_view text_of(int32_t symbol) const;
  void push(int32_t symbol, SentencePieceSink& sink) const;
  void encode_with_unused(std::string_view text, SentencePieceSink& sink) const;
  /// Calls `symbol(number)` and `other(text)` (user-defined pieces, and characters that merge with
  /// nothing) through `text`.
  template <typename Symbol, typename Other>
  void read(std::string_view text, const Symbol& symbol, const Other& other) const;

  const SentencePieces& pieces_;
  std::vector<std::string_view> extra_texts_;  ///< of symbols behind the pieces
  std::unordered_map<std::string_view, int32_t> extra_symbols_;
  std::vector<int32_t> character_symbols_;  ///< of characters in the BMP, -1 for none
  std::vector<int32_t> output_ids_;         ///< of symbols
  MergeTable table_;
  bool has_unused_ = false;  ///< pieces of more than one character that are never put out
};

}  // namespace llmctl::runtime::tokenizer
