// The few fields of a SentencePiece .model file that libsentencepiece does not hand out.
#pragma once

#include <string>
#include <string_view>

namespace llmctl::runtime::tokenizer {

/// From trainer_spec and normalizer_spec of sentencepiece_model.proto; the defaults are the file's.
struct SentencePieceSettings {
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  std::string unk_surface = " \xE2\x81\x87 ";  // ⁇
};

/// Reads the settings. Throws kInvalidInput, naming `where`, for bytes that are not a protobuf
/// message, and for a model that has a denormaliser or keeps white space behind words: decoding
/// those is not supported.
SentencePieceSettings read_sentencepiece_settings(std::string_view bytes, const std::string& where);

/// Is this a list of "base64 rank" lines, as Llama 3 and GLM-4 name tokenizer.model too?
bool looks_like_tiktoken(std::string_view bytes);

}  // namespace llmctl::runtime::tokenizer
