#include "runtime/tokenizer/pipeline.h"

#include <algorithm>
#include <utility>

#include "formats/core/error.h"
#include "runtime/tokenizer/unicode.h"

namespace llmctl::runtime::tokenizer {

namespace {

/// The end of the decoder chain: writes where the current push wants its text.
class TextSink : public DecodeStage {
 public:
  explicit TextSink(std::string** target) : target_(target) {}
  void text(std::string_view part) override { **target_ += part; }
  void end_token() override {}
  void finish() override {}

 private:
  std::string** target_;
};

class PipelineDecode : public DecodeState {
 public:
  PipelineDecode(const PipelineTokenizer& tokenizer, const TokenDecoder& decoder,
                 bool skip_special_tokens)
      : tokenizer_(tokenizer),
        skip_special_tokens_(skip_special_tokens),
        chain_(decoder.start(std::make_unique<TextSink>(&target_))) {}

  void push(int32_t id, std::string& text) override {
    if (skip_special_tokens_ && tokenizer_.is_special(id)) return;
    const std::optional<std::string> spelling = tokenizer_.find_spelling(id);
    if (!spelling) return;
    target_ = &text;
    chain_->text(*spelling);
    chain_->end_token();
  }

  void finish(std::string& text) override {
    target_ = &text;
    chain_->finish();
  }

 private:
  const PipelineTokenizer& tokenizer_;
  bool skip_special_tokens_;
  std::string* target_ = nullptr;
  std::unique_ptr<DecodeStage> chain_;
};

}  // namespace

PipelineTokenizer::PipelineTokenizer(PipelineParts parts, const std::string& where)
    : parts_(std::move(parts)) {
  if (!parts_.decoder) parts_.decoder = make_space_joiner();
  vocab_size_ = parts_.model->vocabulary().size();
  // The library registers special tokens first, which decides between equal patterns.
  std::stable_partition(parts_.added_tokens.begin(), parts_.added_tokens.end(),
                        [](const AddedToken& token) { return token.special; });
  for (AddedToken& token : parts_.added_tokens) {
    if (const auto id = parts_.model->vocabulary().find(token.content)) token.id = *id;
    const std::string* spelling = parts_.model->vocabulary().find_spelling(token.id);
    if ((spelling != nullptr && *spelling != token.content) ||
        !added_by_id_.emplace(token.id, token).second) {
      throw_invalid(where, "added token '" + printable(token.content, 60) + "' has id " +
                               std::to_string(token.id) + ", which another token has too");
    }
    if (!added_by_content_.emplace(token.content, token.id).second) {
      throw_invalid(where, "added token '" + printable(token.content, 60) + "' comes twice");
    }
    vocab_size_ = std::max<int64_t>(vocab_size_, int64_t{token.id} + 1);
    if (!token.normalized) {
      raw_matcher_.add(token.content, token);
      continue;
    }
    Fragment form{token.content, true};
    if (parts_.normalizer) parts_.normalizer->apply(form);
    normalized_matcher_.add(form.text, token);
    // Text lost its own form when the token was matched; what is printed must not regain another.
    // Special tokens are no text and print as they are written.
    if (!token.special) added_by_id_.at(token.id).content = form.text;
  }
  for (const std::vector<int32_t>* ids : {&parts_.frame.prefix, &parts_.frame.suffix}) {
    for (const int32_t id : *ids) {
      if (!find_spelling(id)) {
        throw_invalid(where,
                      "the post-processor adds id " + std::to_string(id) + ", which no token has");
      }
    }
  }
}

std::vector<int32_t> PipelineTokenizer::encode(std::string_view text,
                                               bool add_special_tokens) const {
  std::vector<int32_t> ids;
  if (add_special_tokens) ids = parts_.frame.prefix;
  const std::string valid = to_valid_utf8(text);
  std::vector<Segment> segments;
  raw_matcher_.split(valid, segments);
  for (const Segment& segment : segments) {
    if (segment.id >= 0) {
      ids.push_back(segment.id);
    } else {
      encode_raw_text(std::string_view(valid).substr(segment.begin, segment.end - segment.begin),
                      segment.begin == 0, ids);
    }
  }
  if (add_special_tokens) {
    ids.insert(ids.end(), parts_.frame.suffix.begin(), parts_.frame.suffix.end());
  }
  return ids;
}

void PipelineTokenizer::encode_raw_text(std::string_view text, bool at_start,
                                        std::vector<int32_t>& ids) const {
  Fragment fragment{std::string(text), at_start};
  if (parts_.normalizer) parts_.normalizer->apply(fragment);
  std::vector<Segment> segments;
  normalized_matcher_.split(fragment.text, segments);
  for (const Segment& segment : segments) {
    if (segment.id >= 0) {
      ids.push_back(segment.id);
    } else {
      encode_normalized(
          std::string_view(fragment.text).substr(segment.begin, segment.end - segment.begin),
          fragment.at_start && segment.begin == 0, ids);
    }
  }
}

void PipelineTokenizer::encode_normalized(std::string_view text, bool at_start,
                                          std::vector<int32_t>& ids) const {
  PieceList list{std::string(text), {{0, text.size(), at_start}}};
  if (parts_.pre_tokenizer) parts_.pre_tokenizer->apply(list);
  for (const Piece& piece : list.pieces) {
    parts_.model->encode(std::string_view(list.text).substr(piece.begin, piece.end - piece.begin),
                         ids);
  }
}

std::unique_ptr<DecodeState> PipelineTokenizer::start_decode(bool skip_special_tokens) const {
  return std::make_unique<PipelineDecode>(*this, *parts_.decoder, skip_special_tokens);
}

std::optional<int32_t> PipelineTokenizer::find_token(std::string_view token) const {
  const auto added = added_by_content_.find(std::string(token));
  if (added != added_by_content_.end()) return added->second;
  return parts_.model->vocabulary().find(token);
}

std::optional<std::string> PipelineTokenizer::find_spelling(int32_t id) const {
  const auto added = added_by_id_.find(id);
  if (added != added_by_id_.end()) return added->second.content;
  const std::string* spelling = parts_.model->vocabulary().find_spelling(id);
  if (spelling == nullptr) return std::nullopt;
  return *spelling;
}

bool PipelineTokenizer::is_special(int32_t id) const {
  const auto added = added_by_id_.find(id);
  return added != added_by_id_.end() && added->second.special;
}

}  // namespace llmctl::runtime::tokenizer
