#include "runtime/tokenizer/sentencepiece_model.h"

#include <algorithm>
namespace llmctl::runtime::tokenizer {

SentencePieceModel::SentencePieceModel(std::string_view bytes, const std::string& where)
    : proto_(read_sentencepiece(bytes, where)),
      pieces_(std::move(proto_.pieces), where),
      normalizer_(proto_, pieces_.user_defined(), where) {
  for (int32_t id = 0; id < pieces_.size(); ++id) {
    if (pieces_[id].type != SentencePiece::Type::kByte) continue;
    byte_ids_[static_cast<size_t>(byte_of_piece(pieces_[id].spelling))] = id;
  }
  using Kind = SentencePieceProto::Kind;
  if (proto_.kind == Kind::kUnigram) unigram_ = std::make_unique<SentencePieceUnigram>(pieces_);
  if (proto_.kind == Kind::kBpe || proto_.kind == Kind::kChar) {
    bpe_ = std::make_unique<SentencePieceBpe>(pieces_, proto_.kind == Kind::kBpe);
  }
}

std::optional<int32_t> SentencePieceModel::find_control(std::string_view spelling) const {
  const auto id = pieces_.find(spelling);
  if (!id || pieces_[*id].type != SentencePiece::Type::kControl) return std::nullopt;
  return id;
}

void SentencePieceModel::encode(std::string_view text, std::vector<int32_t>& ids) const {
  const std::string normalized = normalizer_.normalize(text);
  SentencePieceSink sink(ids, pieces_.unk_id(), proto_.byte_fallback ? &byte_ids_ : nullptr);
  if (unigram_) {
    unigram_->encode(normalized, sink);
  } else if (bpe_) {
    bpe_->encode(normalized, sink);
  } else {
    encode_words(normalized, sink);
  }
}

/// Each ▁ begins a word (word_model.cc).
void SentencePieceModel::encode_words(std::string_view text, SentencePieceSink& sink) const {
  while (!text.empty()) {
    const std::string_view word = text.substr(0, std::min(text.find(kSpaceSymbol, 1), text.size()));
    sink.push(pieces_.id_of(word), word);
    text.remove_prefix(word.size());
  }
}

}  // namespace llmctl::runtime::tokenizer
