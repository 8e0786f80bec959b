// Text to token ids and back: one interface over every kind of tokenizer file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace llmctl::runtime {

/// The state of one decode in progress: ids go in one by one, text comes out as soon as no later
/// id can change it. Made by Tokenizer::start_decode; must not outlive its tokenizer. Not
/// thread-safe.
class DecodeState {
 public:
  virtual ~DecodeState() = default;
  /// Appends to `text` what became certain with `id`. Ids outside the vocabulary add nothing.
  virtual void push(int32_t id, std::string& text) = 0;
  /// Appends what was held back; an unfinished character becomes U+FFFD. Call it once, last.
  virtual void finish(std::string& text) = 0;
};

/// A model's tokenizer. Immutable after open; safe to share between threads.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// The ids of `text`. With `add_special_tokens` the model's own frame is put around them (BOS
  /// for LLaMA, </s> for OPT, nothing for GPT-2). Bytes that are not UTF-8 are read as U+FFFD, one
  /// per maximal invalid run as Unicode recommends. Throws kInvalidInput when the vocabulary has
  /// no way to express `text` (a Unigram model without an unknown token).
  virtual std::vector<int32_t> encode(std::string_view text, bool add_special_tokens) const = 0;

  /// The ids of a prompt that a chat template wrote: without a frame, and with every special token
  /// that stands in it as its id, whoever wrote it. Throws as `encode` does, and kInvalidInput
  /// where the tokenizer's files do not say how the text between special tokens begins.
  virtual std::vector<int32_t> encode_chat(std::string_view text) const {
    return encode(text, false);
  }

  /// Begins a decode that is fed id by id. With `skip_special_tokens` special tokens print nothing.
  virtual std::unique_ptr<DecodeState> start_decode(bool skip_special_tokens) const = 0;

  /// The text of `ids`, always valid UTF-8. Ids outside the vocabulary (a padded embedding has
  /// rows no token stands for) print nothing.
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens) const;

  /// The highest id + 1, added tokens included. A model's embedding may be larger (padding).
  virtual int64_t vocab_size() const = 0;

  /// The id of a token by its exact spelling in the vocabulary ("Ġthe", "▁the", "</s>").
  virtual std::optional<int32_t> find_token(std::string_view token) const = 0;

  /// The spelling of `id` in the vocabulary; nothing when no token has this id.
  virtual std::optional<std::string> find_spelling(int32_t id) const = 0;

  /// Is `id` one of the tokens that `skip_special_tokens` leaves out?
  virtual bool is_special(int32_t id) const = 0;
};

/// Opens the tokenizer in a model directory: tokenizer.json if there is one, else tokenizer.model
/// (SentencePiece or tiktoken), else vocab.json with merges.txt, else *.tiktoken, else ChatGLM-6B's
/// ice_text.model. tokenizer_config.json, special_tokens_map.json
/// and config.json are consulted for what those leave open (docs/tokenizers.md). Returns null when
/// the directory has none of them. Throws kInvalidInput, naming file and component, for a broken
/// file and for a component that is not supported; it never guesses.
std::unique_ptr<Tokenizer> open_tokenizer(const std::filesystem::path& directory);

/// The text of a growing sequence of ids, for printing while it is generated. Never hands out half
/// a character. The pieces joined are exactly what a one-shot decode of prompt + ids prints after
/// the prompt's text, so a continuation keeps its leading space; with an empty prompt they are
/// exactly Tokenizer::decode(ids). Must not outlive its tokenizer. Not thread-safe.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, std::span<const int32_t> prompt_ids = {},
                         bool skip_special_tokens = true);

  /// The text that became certain with `id`; often empty in the middle of a character.
  std::string push(int32_t id);
  /// The rest, once no more ids come.
  std::string finish();

 private:
  std::unique_ptr<DecodeState> state_;
};

}  // namespace llmctl::runtime
