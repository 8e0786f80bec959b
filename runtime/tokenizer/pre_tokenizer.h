// The "pre_tokenizer" of a tokenizer.json: cuts text into the pieces that the model sees.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "runtime/tokenizer/component.h"

namespace llmctl::runtime::tokenizer {

/// Bytes [begin, end) of PieceList::text. `at_start`: the piece begins where the input begins.
struct Piece {
  size_t begin, end;
  bool at_start;
};

/// Pieces over one buffer, so that a cut costs no allocation. No piece is empty.
struct PieceList {
  std::string text;
  std::vector<Piece> pieces;
};

/// Immutable; safe to share between threads.
class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual void apply(PieceList& list) const = 0;
};

/// ByteLevel, Split, Metaspace, Digits, Punctuation, Whitespace, WhitespaceSplit,
/// CharDelimiterSplit, Sequence. Any other type is refused by name.
std::unique_ptr<PreTokenizer> read_pre_tokenizer(const Component& component);

}  // namespace llmctl::runtime::tokenizer
