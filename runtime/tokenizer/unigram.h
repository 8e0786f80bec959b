// The Unigram model as the tokenizers library does it: the most probable way to cut a text.
#pragma once

#include <array>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/tokenizer/byte_trie.h"
#include "runtime/tokenizer/model.h"

namespace llmctl::runtime::tokenizer {

/// Viterbi over byte positions; on equal scores the path found first stays. A character that no
/// piece covers costs the lowest score - 10; a run of such characters is one unknown token, or
/// its <0xNN> tokens with byte_fallback (Kudo 2018; tokenizers models/unigram/model.rs).
class Unigram : public Model {
 public:
  /// `pieces` are (spelling, log-probability) by id. Throws kInvalidInput, naming `where`, for an
  /// empty list, a spelling that comes twice, or a score that is not finite.
  /// Requires: unk_id below pieces.size().
  Unigram(const std::vector<std::pair<std::string, double>>& pieces, std::optional<int32_t> unk_id,
          bool byte_fallback, const std::string& where);

  void encode(std::string_view piece, std::vector<int32_t>& ids) const override;
  const Vocabulary& vocabulary() const override { return vocabulary_; }

 private:
  void append_unknown(std::string_view run, std::vector<int32_t>& ids) const;
  int32_t unknown_id() const;

  Vocabulary vocabulary_;
  std::vector<double> scores_;
  std::optional<int32_t> unk_id_;
  double unknown_score_ = 0;
  bool byte_fallback_;
  std::array<std::optional<int32_t>, 256> byte_ids_;
  ByteTrie trie_;
};

}  // namespace llmctl::runtime::tokenizer
