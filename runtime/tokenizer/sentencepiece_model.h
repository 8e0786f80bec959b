// A SentencePiece model: what libsentencepiece's processor does with a .model file.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/tokenizer/sentencepiece_bpe.h"
#include "runtime/tokenizer/sentencepiece_normalizer.h"
#include "runtime/tokenizer/sentencepiece_pieces.h"
#include "runtime/tokenizer/sentencepiece_proto.h"
#include "runtime/tokenizer/sentencepiece_unigram.h"

namespace llmctl::runtime::tokenizer {

/// Encodes exactly as libsentencepiece: BPE, Unigram, word and character models. Immutable; safe to
/// share between threads.
class SentencePieceModel {
 public:
  /// Throws kInvalidInput, naming `where`, for a broken model.
  SentencePieceModel(std::string_view bytes, const std::string& where);

  /// Appends the ids of `text`. Requires: valid UTF-8.
  void encode(std::string_view text, std::vector<int32_t>& ids) const;

  const SentencePieces& pieces() const { return pieces_; }
  /// The control pieces that stand for begin and end; none where the model has none.
  std::optional<int32_t> bos_id() const { return find_control(proto_.bos_piece); }
  std::optional<int32_t> eos_id() const { return find_control(proto_.eos_piece); }

  /// Decoding writes this for the unknown piece.
  const std::string& unk_surface() const { return proto_.unk_surface; }
  bool add_dummy_prefix() const { return proto_.add_dummy_prefix; }
  bool remove_extra_whitespaces() const { return proto_.remove_extra_whitespaces; }

 private:
  std::optional<int32_t> find_control(std::string_view spelling) const;
  void encode_words(std::string_view text, SentencePieceSink& sink) const;

  SentencePieceProto proto_;  ///< its pieces have moved into pieces_
  SentencePieces pieces_;
  SentencePieceNormalizer normalizer_;
  std::array<int32_t, 256> byte_ids_{};  ///< of <0xNN>, with byte_fallback
  std::unique_ptr<SentencePieceBpe> bpe_;
  std::unique_ptr<SentencePieceUnigram> unigram_;
};

}  // namespace llmctl::runtime::tokenizer
