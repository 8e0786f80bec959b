// The tokenizers library's pipeline put together: added tokens, normalizer, pre-tokenizer, model,
// frame, decoder.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "runtime/tokenizer/added_tokens.h"
#include "runtime/tokenizer/decoder.h"
#include "runtime/tokenizer/model.h"
#include "runtime/tokenizer/normalizer.h"
#include "runtime/tokenizer/post_processor.h"
#include "runtime/tokenizer/pre_tokenizer.h"
#include "runtime/tokenizer/tokenizer.h"

namespace llmctl::runtime::tokenizer {

/// What a pipeline is made of. Everything but `model` may be absent.
struct PipelineParts {
  std::vector<AddedToken> added_tokens;
  std::unique_ptr<Normalizer> normalizer;
  std::unique_ptr<PreTokenizer> pre_tokenizer;
  std::unique_ptr<Model> model;
  Frame frame;
  std::unique_ptr<TokenDecoder> decoder;
};

class PipelineTokenizer : public Tokenizer {
 public:
  /// An added token whose content the model knows too takes the model's id. Throws kInvalidInput,
  /// naming `where`, when two added tokens claim one id or the frame speaks of unknown ids.
  PipelineTokenizer(PipelineParts parts, const std::string& where);

  /// Replaces the frame. Call it before the tokenizer is shared. Requires: ids with a token.
  void set_frame(Frame frame) { parts_.frame = std::move(frame); }

  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens) const override;
  std::unique_ptr<DecodeState> start_decode(bool skip_special_tokens) const override;
  int64_t vocab_size() const override { return vocab_size_; }
  std::optional<int32_t> find_token(std::string_view token) const override;
  std::optional<std::string> find_spelling(int32_t id) const override;
  bool is_special(int32_t id) const override;

 private:
  void encode_raw_text(std::string_view text, bool at_start, std::vector<int32_t>& ids) const;
  void encode_normalized(std::string_view text, bool at_start, std::vector<int32_t>& ids) const;

  PipelineParts parts_;
  AddedTokenMatcher raw_matcher_, normalized_matcher_;
  std::unordered_map<int32_t, AddedToken> added_by_id_;
  std::unordered_map<std::string, int32_t> added_by_content_;
  int64_t vocab_size_ = 0;
};

}  // namespace llmctl::runtime::tokenizer
