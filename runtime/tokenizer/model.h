// What turns one piece of text into token ids: the "model" of a tokenizer.json.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "runtime/tokenizer/vocabulary.h"

namespace llmctl::runtime::tokenizer {

/// Immutable; safe to share between threads.
class Model {
 public:
  virtual ~Model() = default;
  /// Appends the ids of `piece` (valid UTF-8, not empty) to `ids`.
  virtual void encode(std::string_view piece, std::vector<int32_t>& ids) const = 0;
  virtual const Vocabulary& vocabulary() const = 0;
};

}  // namespace llmctl::runtime::tokenizer
