// A SentencePiece .model file (sentencepiece_model.proto): its pieces and settings.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace llmctl::runtime::tokenizer {

struct SentencePiece {
  enum class Type { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };
  std::string spelling;
  float score = 0;
  Type type = Type::kNormal;

  /// Is this found in texts? The others have a table of their own, which goes first.
  bool is_text() const {
    return type == Type::kNormal || type == Type::kUserDefined || type == Type::kUnused;
  }
};

/// The whole of a file. The defaults are the format's own.
struct SentencePieceProto {
  enum class Kind { kUnigram = 1, kBpe, kWord, kChar };
  Kind kind = Kind::kUnigram;
  std::vector<SentencePiece> pieces;  ///< by id
  bool byte_fallback = false;
  std::string bos_piece = "<s>", eos_piece = "</s>";
  std::string unk_surface = " \xE2\x81\x87 ";  // ⁇
  std::string charsmap;                        ///< precompiled; empty for none
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
};

/// Reads a file and checks what libsentencepiece checks: no empty piece, one unknown piece, 256
/// byte pieces where byte_fallback says so and none where not. Throws kInvalidInput, naming
/// `where`, for bytes that are not such a file, and for what is not supported: a denormaliser,
/// white space kept behind words, pieces that are not UTF-8.
SentencePieceProto read_sentencepiece(std::string_view bytes, const std::string& where);

/// The byte that a piece <0xNN> stands for; -1 for any other spelling.
int byte_of_piece(std::string_view spelling);

/// Is this a list of "base64 rank" lines, as Llama 3 and GLM-4 name tokenizer.model too?
bool looks_like_tiktoken(std::string_view bytes);

}  // namespace llmctl::runtime::tokenizer
