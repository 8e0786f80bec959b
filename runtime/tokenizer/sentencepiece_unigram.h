// The Unigram model as SentencePiece computes it.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "runtime/tokenizer/sentencepiece_pieces.h"
#include "runtime/tokenizer/sentencepiece_sink.h"
#include "runtime/tokenizer/static_trie.h"

namespace llmctl::runtime::tokenizer {

/// Viterbi over byte positions, in F32 and with the steps of sentencepiece 0.2.3: deep in a long
/// text rounding decides between pieces of nearly the same score (unigram_model.cc,
/// EncodeOptimized; what the library does since that was read is inferred from its ids).
/// Unigram (unigram.h) is the same model with the rules of the tokenizers library. Immutable; safe
/// to share.
class SentencePieceUnigram {
 public:
  /// `pieces` must outlive this.
  explicit SentencePieceUnigram(const SentencePieces& pieces);

  /// Requires: valid UTF-8.
  void encode(std::string_view text, SentencePieceSink& sink) const;

 private:
  const SentencePieces& pieces_;
  StaticTrie trie_;
  std::vector<float> scores_;  ///< by id
  float unknown_score_ = 0;
};

}  // namespace llmctl::runtime::tokenizer
