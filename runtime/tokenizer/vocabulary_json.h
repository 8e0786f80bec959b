// Reads JSON whose vocabulary and merges are far larger than the rest, without a DOM for those.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/tokenizer/bpe.h"
#include "runtime/tokenizer/component.h"

namespace llmctl::runtime::tokenizer {

/// A tokenizer.json taken apart. `rest` holds everything but the big tables.
struct VocabularyJson {
  Json rest;
  std::vector<std::pair<std::string, int64_t>> tokens;  ///< model.vocab as an object
  std::vector<std::pair<std::string, double>> scores;   ///< model.vocab as a list (Unigram)
  Merges merges;                                        ///< model.merges
};

/// Parses a tokenizer.json. Throws kInvalidInput, naming `where`, for malformed JSON, duplicate
/// keys outside the vocabulary (Vocabulary refuses those inside), nesting deeper than 64, a
/// vocabulary or merge of the wrong shape.
VocabularyJson parse_tokenizer_json(std::string_view text, const std::string& where);

/// Parses a vocab.json: one flat object, token -> id.
std::vector<std::pair<std::string, int64_t>> parse_vocab_json(std::string_view text,
                                                              const std::string& where);

}  // namespace llmctl::runtime::tokenizer
