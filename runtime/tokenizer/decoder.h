// The "decoder" of a tokenizer.json: turns token spellings back into text, one token at a time.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "runtime/tokenizer/component.h"

namespace llmctl::runtime::tokenizer {

/// One step of a decode in progress. Tokens come as text in any number of parts, then end_token;
/// what the step makes of them goes to the next one as soon as it is certain. Not thread-safe.
class DecodeStage {
 public:
  virtual ~DecodeStage() = default;
  virtual void text(std::string_view part) = 0;
  virtual void end_token() = 0;
  /// No more tokens come.
  virtual void finish() = 0;
};

/// Immutable; safe to share between threads.
class TokenDecoder {
 public:
  virtual ~TokenDecoder() = default;
  /// A fresh stage that feeds `next`.
  virtual std::unique_ptr<DecodeStage> start(std::unique_ptr<DecodeStage> next) const = 0;
};

/// ByteLevel, ByteFallback, Fuse, Strip, Replace, Metaspace, Sequence. Any other type is refused
/// by name.
std::unique_ptr<TokenDecoder> read_decoder(const Component& component);
/// What the tokenizers library does without a decoder: tokens joined by single spaces.
std::unique_ptr<TokenDecoder> make_space_joiner();

}  // namespace llmctl::runtime::tokenizer
