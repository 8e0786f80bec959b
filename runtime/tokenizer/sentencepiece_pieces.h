// The pieces of a SentencePiece model, found by spelling.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "runtime/tokenizer/sentencepiece_proto.h"
#include "runtime/tokenizer/static_trie.h"

namespace llmctl::runtime::tokenizer {

/// Immutable; safe to share. Not copyable, since others point into the spellings.
class SentencePieces {
 public:
  /// Takes the pieces of a proto that read_sentencepiece has checked. Throws kInvalidInput, naming
  /// `where`, when a spelling comes twice.
  SentencePieces(std::vector<SentencePiece> pieces, const std::string& where);
  SentencePieces(const SentencePieces&) = delete;
  SentencePieces& operator=(const SentencePieces&) = delete;

  int32_t size() const { return static_cast<int32_t>(pieces_.size()); }
  const SentencePiece& operator[](int32_t id) const { return pieces_[static_cast<size_t>(id)]; }
  int32_t unk_id() const { return unk_id_; }
  /// The user-defined pieces, which are cut out of a text before anything else.
  const StaticTrie& user_defined() const { return user_defined_; }

  /// The piece of this spelling; of a reserved one and one for texts the reserved.
  std::optional<int32_t> find(std::string_view spelling) const;
  /// The piece for texts of this spelling.
  std::optional<int32_t> find_text(std::string_view spelling) const;
  /// The id that covers `text`, the unknown piece's where there is none. Reserved and unused
  /// pieces cover nothing.
  int32_t id_of(std::string_view text) const;

 private:
  /// Spelling -> id. To open a BPE model it is asked for each way to cut each piece in two, most
  /// of them in vain, which a short hash beside the id answers without a look at the spelling.
  class Table {
   public:
    Table(const std::vector<SentencePiece>& pieces, bool text, const std::string& where);
    std::optional<int32_t> find(const std::vector<SentencePiece>& pieces,
                                std::string_view spelling) const;

   private:
    struct Slot {
      uint32_t hash;
      int32_t id;  ///< -1 when empty
    };
    std::vector<Slot> slots_;  ///< open addressing; a power of two, at most half full
  };

  std::vector<SentencePiece> pieces_;
  Table text_, reserved_;
  StaticTrie user_defined_;
  int32_t unk_id_ = 0;
};

}  // namespace llmctl::runtime::tokenizer
