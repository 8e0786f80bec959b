#include "runtime/tokenizer/sentencepiece_pieces.h"

#include <algorithm>
#include <bit>
#include <functional>

#include "formats/core/error.h"

namespace llmctl::runtime::tokenizer {

SentencePieces::Table::Table(const std::vector<SentencePiece>& pieces, bool text,
                             const std::string& where) {
  const auto count = std::count_if(pieces.begin(), pieces.end(), [&](const SentencePiece& piece) {
    return piece.is_text() == text;
  });
  slots_.assign(std::bit_ceil(std::max<size_t>(16, static_cast<size_t>(count) * 2)), {0, -1});
  for (size_t id = 0; id < pieces.size(); ++id) {
    const SentencePiece& piece = pieces[id];
    if (piece.is_text() != text) continue;
    const size_t hash = std::hash<std::string_view>()(piece.spelling);
    size_t slot = hash & (slots_.size() - 1);
    while (slots_[slot].id >= 0) {
      if (pieces[static_cast<size_t>(slots_[slot].id)].spelling == piece.spelling) {
        throw_invalid(where, "not a SentencePiece model (piece '" + printable(piece.spelling, 60) +
                                 "' comes twice)");
      }
      slot = (slot + 1) & (slots_.size() - 1);
    }
    slots_[slot] = {static_cast<uint32_t>(hash >> 32), static_cast<int32_t>(id)};
  }
}

std::optional<int32_t> SentencePieces::Table::find(const std::vector<SentencePiece>& pieces,
                                                   std::string_view spelling) const {
  const size_t hash = std::hash<std::string_view>()(spelling);
  for (size_t slot = hash & (slots_.size() - 1); slots_[slot].id >= 0;
       slot = (slot + 1) & (slots_.size() - 1)) {
    const Slot& found = slots_[slot];
    if (found.hash == static_cast<uint32_t>(hash >> 32) &&
        pieces[static_cast<size_t>(found.id)].spelling == spelling) {
      return found.id;
    }
  }
  return std::nullopt;
}

SentencePieces::SentencePieces(std::vector<SentencePiece> pieces, const std::string& where)
    : pieces_(std::move(pieces)), text_(pieces_, true, where), reserved_(pieces_, false, where) {
  std::vector<std::pair<std::string_view, int32_t>> user_defined;
  for (int32_t id = 0; id < size(); ++id) {
    const SentencePiece& piece = (*this)[id];
    if (piece.type == SentencePiece::Type::kUserDefined) {
      user_defined.emplace_back(piece.spelling, id);
    }
    if (piece.type == SentencePiece::Type::kUnknown) unk_id_ = id;
  }
  user_defined_ = StaticTrie(std::move(user_defined));
}

std::optional<int32_t> SentencePieces::find(std::string_view spelling) const {
  const auto found = reserved_.find(pieces_, spelling);
  return found ? found : find_text(spelling);
}

int32_t SentencePieces::id_of(std::string_view text) const {
  const auto id = find_text(text);
  return id && (*this)[*id].type != SentencePiece::Type::kUnused ? *id : unk_id_;
}

std::optional<int32_t> SentencePieces::find_text(std::string_view spelling) const {
  return text_.find(pieces_, spelling);
}

}  // namespace llmctl::runtime::tokenizer
