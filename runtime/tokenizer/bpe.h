// Byte-pair encoding as the tokenizers library does it.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/tokenizer/merge_table.h"
#include "runtime/tokenizer/model.h"

namespace llmctl::runtime::tokenizer {

struct BpeOptions {
  std::optional<std::string> unk_token;
  std::string continuing_subword_prefix;  ///< before every symbol of a piece but the first
  std::string end_of_word_suffix;         ///< behind the last symbol of a piece
  bool fuse_unk = false;                  ///< a run of unknown characters is one unknown token
  bool byte_fallback = false;             ///< unknown characters become <0xNN> tokens
  bool ignore_merges = false;             ///< a piece that is itself a token is not taken apart
  bool long_pieces = false;  ///< no pre-tokenizer cuts texts into words; costs time at load only
};

using Merges = std::vector<std::pair<std::string, std::string>>;

/// Symbols start as single characters, and merge by their place in the list (MergeTable). With
/// `long_pieces` a piece is first cut wherever no merge joins the two characters.
class Bpe : public Model {
 public:
  /// Throws kInvalidInput, naming `where`, when a merge speaks of tokens that are not there.
  Bpe(Vocabulary vocabulary, const Merges& merges, BpeOptions options, const std::string& where);

  void encode(std::string_view piece, std::vector<int32_t>& ids) const override;
  const Vocabulary& vocabulary() const override { return vocabulary_; }

 private:
  void find_joints(const Merges& merges);

  void start_symbols(std::string_view piece, std::vector<int32_t>& symbols) const;

  Vocabulary vocabulary_;
  BpeOptions options_;
  std::optional<int32_t> unk_id_;
  std::array<std::optional<int32_t>, 256> byte_ids_;  ///< of <0xNN>
  std::vector<int32_t> character_ids_;  ///< of one-character tokens in the BMP, -1 for none
  MergeTable merges_;
};

}  // namespace llmctl::runtime::tokenizer
