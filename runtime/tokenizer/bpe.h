// Byte-pair encoding as the tokenizers library does it.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <utility>
#include <vector>

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

/// Symbols start as single characters; the pair with the lowest rank (its place in the list), the
/// leftmost on ties, is merged until no pair is in the list. Short pieces are searched
/// linearly, long ones through a heap, so that a text without cuts costs n log n. With
/// `long_pieces` a piece is first cut wherever no merge joins the two characters.
class Bpe : public Model {
 public:
  /// Throws kInvalidInput, naming `where`, when a merge speaks of tokens that are not there.
  Bpe(Vocabulary vocabulary, const Merges& merges, BpeOptions options, const std::string& where);

  void encode(std::string_view piece, std::vector<int32_t>& ids) const override;
  const Vocabulary& vocabulary() const override { return vocabulary_; }

 private:
  struct Merge {
    uint64_t pair;  ///< left id in the high half; kNoPair marks an empty slot
    int32_t rank;
    int32_t id;  ///< of the merged token
  };
  static constexpr uint64_t kNoPair = ~uint64_t{0};

  void insert_merge(int32_t left, int32_t right, int32_t rank, int32_t id);
  /// Null when the pair does not merge.
  const Merge* find_merge(int32_t left, int32_t right) const;
  static size_t slot_of(uint64_t pair, int shift);

  void find_joints(const Merges& merges);
  /// May some merge join what ends with the start symbol `left` to what begins with `right`?
  bool may_join(int32_t left, int32_t right) const;

  void start_symbols(std::string_view piece, std::vector<int32_t>& symbols) const;
  void merge(std::vector<int32_t>& symbols, std::vector<int32_t>& ids) const;
  void merge_short(std::vector<int32_t>& symbols) const;
  void merge_long(std::vector<int32_t>& symbols) const;

  Vocabulary vocabulary_;
  BpeOptions options_;
  std::optional<int32_t> unk_id_;
  std::array<std::optional<int32_t>, 256> byte_ids_;  ///< of <0xNN>
  std::vector<int32_t> character_ids_;  ///< of one-character tokens in the BMP, -1 for none
  std::vector<Merge> table_;            ///< open addressing; a power of two, at most half full
  int shift_ = 0;
  std::vector<bool> joints_;  ///< by hash of two start symbols; a power of two, or empty
  int joints_shift_ = 0;
};

}  // namespace llmctl::runtime::tokenizer
