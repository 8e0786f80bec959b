#include <algorithm>
#include <array>
#include <cstdint>
#include <string>

#include "formats/core/error.h"
#include "runtime/tokenizer/sources.h"
#include "runtime/tokenizer/unicode.h"

namespace llmctl::runtime::tokenizer {

namespace {

constexpr size_t kMaxBlanks = 80;
constexpr std::string_view kLineFeed = "<n>";
constexpr std::string_view kTab = "<|tab|>";

void append_blanks(size_t count, std::string& out) {
  while (count > 0) {
    const size_t run = std::min(count, kMaxBlanks);
    if (run == 1) {
      out += ' ';
    } else {
      out += "<|blank_" + std::to_string(run) + "|>";
    }
    count -= run;
  }
}

/// White space as the pieces that stand for it (THUDM/chatglm-6b tokenization_chatglm.py,
/// SPTokenizer._preprocess): line feeds, tabs, and runs of blanks, the longest first.
std::string spell_white_space(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\n') {
      out += kLineFeed;
    } else if (text[i] == '\t') {
      out += kTab;
    } else if (text[i] == ' ') {
      const size_t end = std::min(text.find_first_not_of(' ', i), text.size());
      append_blanks(end - i, out);
      i = end - 1;
    } else {
      out += text[i];
    }
  }
  return out;
}

/// Undoes spell_white_space on a text that arrives in parts. Each spelling begins with the one '<'
/// and ends with the one '>' in it, so spellings cannot overlap and a new '<' ends a false start.
class WhiteSpaceReader {
 public:
  void push(std::string_view part, std::string& text) {
    for (const char c : part) {
      if (c == '<') flush(text);
      if (pending_.empty() && c != '<') {
        text += c;
        continue;
      }
      pending_ += c;
      if (c == '>') {
        if (!read(text)) flush(text);
        pending_.clear();
      } else if (pending_.size() > kLongest || !may_become_spelling()) {
        flush(text);
      }
    }
  }
  void flush(std::string& text) {
    text += pending_;
    pending_.clear();
  }

 private:
  static constexpr size_t kLongest = std::string_view("<|blank_80|>").size();

  bool may_become_spelling() const {
    constexpr std::string_view kBlank = "<|blank_";
    return kLineFeed.starts_with(pending_) || kTab.starts_with(pending_) ||
           kBlank.starts_with(std::string_view(pending_).substr(0, kBlank.size()));
  }

  /// Appends what the pending spelling stands for; false when it is none.
  bool read(std::string& text) const {
    if (pending_ == kLineFeed) {
      text += '\n';
      return true;
    }
    if (pending_ == kTab) {
      text += '\t';
      return true;
    }
    for (size_t count = 2; count <= kMaxBlanks; ++count) {
      if (pending_ == "<|blank_" + std::to_string(count) + "|>") {
        text.append(count, ' ');
        return true;
      }
    }
    return false;
  }

  std::string pending_;
};

class ChatGlmDecode : public DecodeState {
 public:
  ChatGlmDecode(std::unique_ptr<DecodeState> pieces, int32_t first_piece)
      : pieces_(std::move(pieces)), first_piece_(first_piece) {}

  void push(int32_t id, std::string& text) override {
    if (id < first_piece_) return;  // an image token
    std::string part;
    pieces_->push(id - first_piece_, part);
    reader_.push(part, text);
  }
  void finish(std::string& text) override {
    std::string part;
    pieces_->finish(part);
    reader_.push(part, text);
    reader_.flush(text);
  }

 private:
  std::unique_ptr<DecodeState> pieces_;
  int32_t first_piece_;
  WhiteSpaceReader reader_;
};

/// ChatGLM-6B's SPTokenizer: a SentencePiece model behind `first_piece` ids for images, with white
/// space spelled out, and [gMASK] <sop> behind every text.
class ChatGlmTokenizer : public Tokenizer {
 public:
  ChatGlmTokenizer(std::unique_ptr<Tokenizer> pieces, int32_t first_piece, const std::string& where)
      : pieces_(std::move(pieces)), first_piece_(first_piece) {
    for (const char* token : {"[gMASK]", "<sop>"}) {
      const auto id = find_token(token);
      if (!id) throw_invalid(where, std::string("no piece is '") + token + "'");
      suffix_.push_back(*id);
    }
  }

  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens) const override {
    std::vector<int32_t> ids = pieces_->encode(spell_white_space(text), false);
    for (int32_t& id : ids) id += first_piece_;
    if (add_special_tokens) ids.insert(ids.end(), suffix_.begin(), suffix_.end());
    return ids;
  }
  std::unique_ptr<DecodeState> start_decode(bool skip_special_tokens) const override {
    return std::make_unique<ChatGlmDecode>(pieces_->start_decode(skip_special_tokens),
                                           first_piece_);
  }
  int64_t vocab_size() const override { return first_piece_ + pieces_->vocab_size(); }
  std::optional<int32_t> find_token(std::string_view token) const override {
    const auto id = pieces_->find_token(token);
    return id ? std::optional(*id + first_piece_) : std::nullopt;
  }
  std::optional<std::string> find_spelling(int32_t id) const override {
    return id < first_piece_ ? std::nullopt : pieces_->find_spelling(id - first_piece_);
  }
  bool is_special(int32_t id) const override {
    return id >= first_piece_ && pieces_->is_special(id - first_piece_);
  }

 private:
  std::unique_ptr<Tokenizer> pieces_;
  int32_t first_piece_;
  std::vector<int32_t> suffix_;
};

}  // namespace

std::unique_ptr<Tokenizer> open_chatglm(const std::filesystem::path& path,
                                        const TokenizerConfig& config) {
  if (!config.num_image_tokens) {
    throw_invalid((config.directory / "tokenizer_config.json").string(),
                  "\"num_image_tokens\" is missing, so the first text id is not known",
                  "set it to 0 for a vocab_size of 130528, to 20000 for one of 150528");
  }
  TokenizerConfig plain;  // what stands around a text is not the SentencePiece reader's business
  plain.directory = config.directory;
  plain.add_bos_token = plain.add_eos_token = false;
  return std::make_unique<ChatGlmTokenizer>(open_sentencepiece(path, plain),
                                            *config.num_image_tokens, path.string());
}

}  // namespace llmctl::runtime::tokenizer
