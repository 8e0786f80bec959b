// The "normalizer" of a tokenizer.json: rewrites text before it is cut.
#pragma once

#include <memory>
#include <string>

#include "runtime/tokenizer/component.h"

namespace llmctl::runtime::tokenizer {

/// A piece of the input on its way through the pipeline.
struct Fragment {
  std::string text;
  /// Does `text` still begin with what the whole input begins with? (Metaspace "first" asks.)
  bool at_start;
};

/// Immutable; safe to share between threads.
class Normalizer {
 public:
  virtual ~Normalizer() = default;
  virtual void apply(Fragment& fragment) const = 0;
};

/// NFC, NFD, NFKC, NFKD, Prepend, Replace, Strip, StripAccents, Lowercase, ByteLevel,
/// Precompiled, Sequence. Any other type is refused by name.
std::unique_ptr<Normalizer> read_normalizer(const Component& component);

}  // namespace llmctl::runtime::tokenizer
