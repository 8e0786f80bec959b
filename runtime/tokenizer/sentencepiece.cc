#include <algorithm>
#include <array>
#include <span>
#include <unordered_map>

#include "formats/core/error.h"
#include "formats/core/file.h"
#include "runtime/tokenizer/sentencepiece_model.h"
#include "runtime/tokenizer/sources.h"
#include "runtime/tokenizer/unicode.h"
#include "runtime/tokenizer/vocabulary.h"

namespace llmctl::runtime::tokenizer {

namespace {

/// What the tokenizer classes of transformers put around a text, and the special tokens they
/// append behind the pieces of the model.
struct SentencePieceClass {
  std::string_view tokenizer_class;
  bool add_bos_token, add_eos_token;  ///< when tokenizer_config.json does not say
  std::span<const std::string_view> extra_tokens;
  std::span<const size_t> prefix;  ///< indices into extra_tokens
  /// Special tokens wherever they stand in a text. Those that are pieces keep their ids, the others
  /// come behind the pieces in this order. What is between them is a text of its own.
  std::span<const std::string_view> in_text_tokens = {};
};

// THUDM/chatglm2-6b tokenization_chatglm.py: every text begins with [gMASK] sop.
constexpr std::array<std::string_view, 5> kChatGlmTokens = {"[MASK]", "[gMASK]", "[sMASK]", "sop",
                                                            "eop"};
constexpr std::array<size_t, 2> kChatGlmPrefix = {1, 3};

constexpr std::array kClasses = {
    SentencePieceClass{"", true, false, {}, {}},
    SentencePieceClass{"LlamaTokenizer", true, false, {}, {}},
    SentencePieceClass{"CodeLlamaTokenizer", true, false, {}, {}},
    SentencePieceClass{"BaichuanTokenizer", true, false, {}, {}},
    SentencePieceClass{"InternLMTokenizer", true, false, {}, {}},
    SentencePieceClass{"InternLM2Tokenizer", true, false, {}, {}},
    SentencePieceClass{"GemmaTokenizer", true, false, {}, {}},
    SentencePieceClass{"ChatGLMTokenizer", false, false, kChatGlmTokens, kChatGlmPrefix},
};

constexpr SentencePieceClass kUnknownClass{"", false, false, {}, {}};

// Yuan-2.0 megatron/tokenizer/tokenizer.py, YuanTokenizer: LlamaTokenizer with <eod> for the end,
// these tokens added in this order, and neither BOS nor EOS whatever the files beside it say.
constexpr std::array<std::string_view, 16> kYuanTokens = {
    "<eod>",          "<sep>",           "<pad>",          "<mask>",          "<predict>",
    "<FIM_SUFFIX>",   "<FIM_PREFIX>",    "<FIM_MIDDLE>",   "<commit_before>", "<commit_msg>",
    "<commit_after>", "<jupyter_start>", "<jupyter_text>", "<jupyter_code>",  "<jupyter_output>",
    "<empty_output>"};
constexpr SentencePieceClass kYuanClass{"LlamaTokenizer", false, false, {}, {}, kYuanTokens};

class SentencePieceDecode;

class SentencePieceTokenizer : public Tokenizer {
 public:
  SentencePieceTokenizer(const std::filesystem::path& path, const TokenizerConfig& config);

  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens) const override;
  std::vector<int32_t> encode_chat(std::string_view text) const override;
  std::unique_ptr<DecodeState> start_decode(bool skip_special_tokens) const override;
  int64_t vocab_size() const override { return vocab_size_; }
  std::optional<int32_t> find_token(std::string_view token) const override;
  std::optional<std::string> find_spelling(int32_t id) const override;
  bool is_special(int32_t id) const override;

 private:
  friend class SentencePieceDecode;

  bool is_piece(int32_t id) const { return id >= 0 && id < pieces().size(); }
  void add_extra_token(const AddedToken& token);
  void add_extra_tokens(const SentencePieceClass& traits, const TokenizerConfig& config);
  void add_in_text_tokens(const SentencePieceClass& traits);
  std::vector<int32_t> encode_around(const AddedTokenMatcher& tokens, std::string_view text) const;
  void find_chat_tokens(const TokenizerConfig& config);
  bool is_in_text_token(int32_t id) const {
    return std::find(in_text_ids_.begin(), in_text_ids_.end(), id) != in_text_ids_.end();
  }
  void choose_frame(const SentencePieceClass& traits, const TokenizerConfig& config,
                    const std::string& where);

  const SentencePieces& pieces() const { return model_.pieces(); }

  SentencePieceModel model_;
  int64_t vocab_size_ = 0;
  std::vector<int32_t> prefix_, suffix_;
  std::vector<AddedToken> extra_tokens_;  ///< those that are no pieces
  std::unordered_map<int32_t, size_t> extra_by_id_;
  std::unordered_map<std::string, size_t> extra_by_content_;
  AddedTokenMatcher in_text_tokens_;
  std::vector<int32_t> in_text_ids_;  ///< of in_text_tokens_
  AddedTokenMatcher chat_tokens_;     ///< those that a chat template may write
  bool spaced_after_tokens_ = true;   ///< does a text behind a special token get its own space?
};

/// SentencePieceProcessor::Decode, id by id (sentencepiece_processor.cc).
class SentencePieceDecode : public DecodeState {
 public:
  SentencePieceDecode(const SentencePieceTokenizer& tokenizer, bool skip_special_tokens)
      : tokenizer_(tokenizer), skip_special_tokens_(skip_special_tokens) {}

  void push(int32_t id, std::string& text) override {
    const SentencePiece* found = tokenizer_.is_piece(id) ? &tokenizer_.pieces()[id] : nullptr;
    if (found != nullptr && found->type == SentencePiece::Type::kByte) {
      push_byte(found->spelling, text);
      return;
    }
    end_bytes(text);
    if (tokenizer_.is_in_text_token(id)) {
      if (!skip_special_tokens_) text += tokenizer_.find_spelling(id).value_or("");
      at_start_ = true;
      prefix_space_seen_ = printed_ = false;
      return;
    }
    // The space of the dummy prefix belongs to the first piece that prints something.
    if (prefix_space_seen_ || printed_) at_start_ = false;
    prefix_space_seen_ = false;
    if (found == nullptr || found->type == SentencePiece::Type::kControl) {
      if (!skip_special_tokens_ || !tokenizer_.is_special(id)) {
        print(tokenizer_.find_spelling(id).value_or(""), text);
      }
      return;
    }
    const SentencePieceModel& model = tokenizer_.model_;
    if (found->type == SentencePiece::Type::kUnknown) {
      print(model.unk_surface(), text);
      return;
    }
    std::string_view piece = found->spelling;
    if (at_start_ && (model.add_dummy_prefix() || model.remove_extra_whitespaces()) &&
        piece.starts_with(kSpaceSymbol)) {
      piece.remove_prefix(kSpaceSymbol.size());
      // Where extra space is removed all leading spaces go, not just one.
      prefix_space_seen_ = !model.remove_extra_whitespaces();
    }
    std::string out;
    while (!piece.empty()) {
      const size_t space = std::min(piece.find(kSpaceSymbol), piece.size());
      out += piece.substr(0, space);
      piece.remove_prefix(space);
      if (piece.empty()) break;
      out += ' ';
      piece.remove_prefix(kSpaceSymbol.size());
    }
    print(out, text);
  }

  void finish(std::string& text) override { end_bytes(text); }

 private:
  void print(std::string_view part, std::string& text) {
    text += part;
    printed_ = printed_ || !part.empty();
  }

  /// `piece` is <0xNN>. Unlike elsewhere, each byte of an invalid run is one U+FFFD.
  void push_byte(std::string_view piece, std::string& text) {
    const auto digit = [](char c) { return c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10; };
    bytes_ += static_cast<char>(digit(piece[3]) * 16 + digit(piece[4]));
    while (!bytes_.empty()) {
      const Utf8Front front = classify_utf8(bytes_);
      if (front.kind == Utf8Kind::kTruncated) return;
      const bool whole = front.kind == Utf8Kind::kCharacter;
      print(whole ? std::string_view(bytes_).substr(0, front.length) : kReplacementCharacter, text);
      bytes_.erase(0, whole ? front.length : 1);
    }
  }

  void end_bytes(std::string& text) {
    for (size_t i = 0; i < bytes_.size(); ++i) print(kReplacementCharacter, text);
    bytes_.clear();
  }

  const SentencePieceTokenizer& tokenizer_;
  bool skip_special_tokens_;
  bool at_start_ = true, prefix_space_seen_ = false, printed_ = false;
  std::string bytes_;  ///< of a character in progress
};

SentencePieceTokenizer::SentencePieceTokenizer(const std::filesystem::path& path,
                                               const TokenizerConfig& config)
    : model_(read_text_file(path, kMaxTokenizerBytes), path.string()) {
  const std::string where = path.string();
  vocab_size_ = pieces().size();
  if (config.model_type == "yuan") {
    add_in_text_tokens(kYuanClass);
    add_extra_tokens(kYuanClass, config);
    find_chat_tokens(config);
    return;
  }
  const auto kind = std::find_if(kClasses.begin(), kClasses.end(), [&](const auto& entry) {
    return entry.tokenizer_class == config.tokenizer_class;
  });
  if (kind == kClasses.end() && !config.add_bos_token) {
    throw_invalid(where,
                  "tokenizer class '" + printable(config.tokenizer_class, 60) +
                      "' is not supported: whether its texts begin with BOS is not known",
                  "set \"add_bos_token\" in tokenizer_config.json");
  }
  // The unknown class has no tokens of its own, and its flags are all stated.
  const SentencePieceClass& traits = kind != kClasses.end() ? *kind : kUnknownClass;
  add_extra_tokens(traits, config);
  choose_frame(traits, config, where);
  find_chat_tokens(config);
}

void SentencePieceTokenizer::add_extra_token(const AddedToken& token) {
  extra_by_id_.emplace(token.id, extra_tokens_.size());
  extra_by_content_.emplace(token.content, extra_tokens_.size());
  extra_tokens_.push_back(token);
}

void SentencePieceTokenizer::add_in_text_tokens(const SentencePieceClass& traits) {
  for (const std::string_view content : traits.in_text_tokens) {
    AddedToken token;
    token.content = content;
    token.special = true;
    if (const auto id = find_token(content)) {
      token.id = *id;
    } else {
      token.id = static_cast<int32_t>(vocab_size_++);
      add_extra_token(token);
    }
    in_text_ids_.push_back(token.id);
    in_text_tokens_.add(content, token);
  }
}

void SentencePieceTokenizer::add_extra_tokens(const SentencePieceClass& traits,
                                              const TokenizerConfig& config) {
  for (const std::string_view content : traits.extra_tokens) {
    AddedToken token;
    token.id = static_cast<int32_t>(vocab_size_++);
    token.content = content;
    token.special = true;
    add_extra_token(token);
  }
  const int64_t limit = 2 * int64_t{pieces().size()} + (int64_t{1} << 20);
  for (const AddedToken& token : config.added_tokens) {
    // Of two tokens with one id the model's own, or the class's, counts.
    if (find_spelling(token.id)) continue;
    if (token.id >= limit) {
      throw_invalid(config.directory.string(), "added token '" + printable(token.content, 60) +
                                                   "' has id " + std::to_string(token.id) +
                                                   ", far behind the model's " +
                                                   std::to_string(pieces().size()) + " pieces");
    }
    add_extra_token(token);
    vocab_size_ = std::max<int64_t>(vocab_size_, int64_t{token.id} + 1);
  }
}

void SentencePieceTokenizer::choose_frame(const SentencePieceClass& traits,
                                          const TokenizerConfig& config, const std::string& where) {
  for (const size_t index : traits.prefix) prefix_.push_back(extra_tokens_[index].id);
  const auto id_of = [&](const char* role, std::optional<int32_t> fallback) {
    const std::string* content = config.find_role(role);
    return content == nullptr ? fallback : find_token(*content);
  };
  const auto need = [&](const char* role, std::optional<int32_t> id) {
    if (!id) throw_invalid(where, std::string("no piece is the ") + role);
    return *id;
  };
  const std::optional<int32_t> bos = id_of("bos_token", model_.bos_id());
  const bool class_adds_bos = traits.add_bos_token && bos.has_value();
  if (config.add_bos_token.value_or(class_adds_bos)) prefix_.push_back(need("bos_token", bos));
  if (config.add_eos_token.value_or(traits.add_eos_token)) {
    suffix_.push_back(need("eos_token", id_of("eos_token", model_.eos_id())));
  }
}

std::vector<int32_t> SentencePieceTokenizer::encode(std::string_view text,
                                                    bool add_special_tokens) const {
  std::vector<int32_t> ids = encode_around(in_text_tokens_, text);
  if (add_special_tokens) {
    ids.insert(ids.begin(), prefix_.begin(), prefix_.end());
    ids.insert(ids.end(), suffix_.begin(), suffix_.end());
  }
  return ids;
}

std::vector<int32_t> SentencePieceTokenizer::encode_chat(std::string_view text) const {
  if (!spaced_after_tokens_) {
    throw_invalid("tokenizer_config.json",
                  "\"legacy\" is false: text behind a special token begins without a space, which "
                  "a SentencePiece model alone cannot do",
                  "put the model's tokenizer.json beside it");
  }
  return encode_around(chat_tokens_, text);
}

/// transformers' LlamaTokenizer: the special tokens are the pieces that are no text, and those that
/// are no pieces.
void SentencePieceTokenizer::find_chat_tokens(const TokenizerConfig& config) {
  spaced_after_tokens_ = config.legacy.value_or(true);
  for (int32_t id = 0; id < pieces().size(); ++id) {
    const SentencePiece::Type type = pieces()[id].type;
    if (type != SentencePiece::Type::kControl && type != SentencePiece::Type::kUnknown &&
        !is_in_text_token(id)) {
      continue;
    }
    AddedToken token;
    token.id = id;
    chat_tokens_.add(pieces()[id].spelling, token);
  }
  for (const AddedToken& token : extra_tokens_) chat_tokens_.add(token.content, token);
}

/// What lies between `tokens` is a text of its own.
std::vector<int32_t> SentencePieceTokenizer::encode_around(const AddedTokenMatcher& tokens,
                                                           std::string_view text) const {
  const std::string valid = to_valid_utf8(text);
  std::vector<Segment> segments;
  tokens.split(valid, segments);
  std::vector<int32_t> ids;
  for (const Segment& segment : segments) {
    if (segment.id >= 0) {
      ids.push_back(segment.id);
    } else {
      model_.encode(std::string_view(valid).substr(segment.begin, segment.end - segment.begin),
                    ids);
    }
  }
  return ids;
}

std::unique_ptr<DecodeState> SentencePieceTokenizer::start_decode(bool skip_special_tokens) const {
  return std::make_unique<SentencePieceDecode>(*this, skip_special_tokens);
}

std::optional<int32_t> SentencePieceTokenizer::find_token(std::string_view token) const {
  const auto extra = extra_by_content_.find(std::string(token));
  if (extra != extra_by_content_.end()) return extra_tokens_[extra->second].id;
  return pieces().find(token);
}

std::optional<std::string> SentencePieceTokenizer::find_spelling(int32_t id) const {
  if (is_piece(id)) return pieces()[id].spelling;
  const auto extra = extra_by_id_.find(id);
  if (extra != extra_by_id_.end()) return extra_tokens_[extra->second].content;
  return std::nullopt;
}

bool SentencePieceTokenizer::is_special(int32_t id) const {
  if (is_in_text_token(id)) return true;
  if (is_piece(id)) return pieces()[id].type == SentencePiece::Type::kControl;
  const auto extra = extra_by_id_.find(id);
  return extra != extra_by_id_.end() && extra_tokens_[extra->second].special;
}

}  // namespace

std::unique_ptr<Tokenizer> open_sentencepiece(const std::filesystem::path& path,
                                              const TokenizerConfig& config) {
  return std::make_unique<SentencePieceTokenizer>(path, config);
}

}  // namespace llmctl::runtime::tokenizer
