#include "runtime/tokenizer/tokenizer.h"

namespace llmctl::runtime {

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  const std::unique_ptr<DecodeState> state = start_decode(skip_special_tokens);
  std::string text;
  for (const int32_t id : ids) state->push(id, text);
  state->finish(text);
  return text;
}

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, std::span<const int32_t> prompt_ids,
                             bool skip_special_tokens)
    : state_(tokenizer.start_decode(skip_special_tokens)) {
  std::string prompt;
  for (const int32_t id : prompt_ids) state_->push(id, prompt);
}

std::string StreamDecoder::push(int32_t id) {
  std::string text;
  state_->push(id, text);
  return text;
}

std::string StreamDecoder::finish() {
  std::string text;
  state_->finish(text);
  return text;
}

}  // namespace llmctl::runtime
