#include "runtime/tokenizer/decoder.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "runtime/tokenizer/byte_level.h"
#include "runtime/tokenizer/pattern.h"
#include "runtime/tokenizer/unicode.h"

namespace llmctl::runtime::tokenizer {

namespace {

using Next = std::unique_ptr<DecodeStage>;

/// A decoder that is all settings: `Stage` is constructible from (next, settings).
template <typename Stage, typename Settings>
class StageDecoder : public TokenDecoder {
 public:
  explicit StageDecoder(Settings settings) : settings_(std::move(settings)) {}
  Next start(Next next) const override {
    return std::make_unique<Stage>(std::move(next), settings_);
  }

 private:
  Settings settings_;
};

/// For steps that look at a token as a whole.
class WholeTokenStage : public DecodeStage {
 public:
  explicit WholeTokenStage(Next next) : next_(std::move(next)) {}
  void text(std::string_view part) override { token_ += part; }
  void end_token() override {
    token(token_);
    token_.clear();
  }
  void finish() override { next_->finish(); }

 protected:
  virtual void token(std::string_view token) = 0;
  void emit(std::string_view token) {
    next_->text(token);
    next_->end_token();
  }

  Next next_;

 private:
  std::string token_;
};

struct NoSettings {};

/// Characters back to bytes, bytes to UTF-8; all tokens become one.
class ByteLevelStage : public WholeTokenStage {
 public:
  ByteLevelStage(Next next, NoSettings) : WholeTokenStage(std::move(next)) {}
  void finish() override {
    std::string text;
    repairer_.finish(text);
    emit(text);
    next_->finish();
  }

 protected:
  void token(std::string_view token) override {
    const std::optional<std::string> bytes = bytes_from_byte_level(token);
    std::string text;
    repairer_.push(bytes ? std::string_view(*bytes) : token, text);
    if (!text.empty()) next_->text(text);
  }

 private:
  Utf8Repairer repairer_;
};

/// A run of <0xNN> tokens is text if all of it is UTF-8, else one U+FFFD per byte. That is known
/// only where the run ends, so the run is held back until then.
class ByteFallbackStage : public WholeTokenStage {
 public:
  ByteFallbackStage(Next next, NoSettings) : WholeTokenStage(std::move(next)) {}
  void finish() override {
    end_run();
    next_->finish();
  }

 protected:
  void token(std::string_view token) override {
    if (const std::optional<char> byte = byte_of(token)) {
      run_ += *byte;
      return;
    }
    end_run();
    emit(token);
  }

 private:
  static std::optional<char> byte_of(std::string_view token) {
    if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') return std::nullopt;
    int value = 0;
    for (const char c : token.substr(3, 2)) {
      value *= 16;
      if (c >= '0' && c <= '9') {
        value += c - '0';
      } else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f') {
        value += (c | 0x20) - 'a' + 10;
      } else {
        return std::nullopt;
      }
    }
    return static_cast<char>(value);
  }

  void end_run() {
    if (run_.empty()) return;
    if (is_valid_utf8(run_)) {
      emit(run_);
    } else {
      for (size_t i = 0; i < run_.size(); ++i) emit(kReplacementCharacter);
    }
    run_.clear();
  }

  std::string run_;
};

/// All tokens become one, so that Strip sees the ends of the whole text.
class FuseStage : public DecodeStage {
 public:
  FuseStage(Next next, NoSettings) : next_(std::move(next)) {}
  void text(std::string_view part) override { next_->text(part); }
  void end_token() override {}
  void finish() override {
    next_->end_token();
    next_->finish();
  }

 private:
  Next next_;
};

struct StripSettings {
  std::string content;  ///< one character
  int64_t start, stop;  ///< at most so many copies go
};

class StripStage : public DecodeStage {
 public:
  StripStage(Next next, StripSettings settings)
      : next_(std::move(next)), settings_(std::move(settings)), left_(settings_.start) {}

  void text(std::string_view part) override {
    pending_ += part;
    const std::string& content = settings_.content;
    while (left_ > 0 && pending_.starts_with(content)) {
      pending_.erase(0, content.size());
      --left_;
    }
    if (!pending_.empty()) left_ = 0;
    // The copies at the end may be the ones that go.
    size_t keep = pending_.size();
    for (int64_t i = 0; i < settings_.stop && ends_with_content(keep); ++i) keep -= content.size();
    next_->text(std::string_view(pending_).substr(0, keep));
    pending_.erase(0, keep);
  }
  void end_token() override {
    pending_.clear();
    left_ = settings_.start;
    next_->end_token();
  }
  void finish() override { next_->finish(); }

 private:
  bool ends_with_content(size_t size) const {
    return std::string_view(pending_).substr(0, size).ends_with(settings_.content);
  }

  Next next_;
  StripSettings settings_;
  std::string pending_;
  int64_t left_;
};

struct ReplaceSettings {
  std::shared_ptr<const Pattern> pattern;
  std::string content;
};

class ReplaceStage : public WholeTokenStage {
 public:
  ReplaceStage(Next next, ReplaceSettings settings)
      : WholeTokenStage(std::move(next)), settings_(std::move(settings)) {}

 protected:
  void token(std::string_view token) override {
    spans_.clear();
    settings_.pattern->find(token, spans_);
    std::string out;
    for (const Span& span : spans_) {
      out += span.is_match ? std::string_view(settings_.content)
                           : token.substr(span.begin, span.end - span.begin);
    }
    emit(out);
  }

 private:
  ReplaceSettings settings_;
  std::vector<Span> spans_;
};

struct MetaspaceSettings {
  std::string replacement;
  bool drop_at_start;
};

class MetaspaceStage : public WholeTokenStage {
 public:
  MetaspaceStage(Next next, MetaspaceSettings settings)
      : WholeTokenStage(std::move(next)), settings_(std::move(settings)) {}

 protected:
  void token(std::string_view token) override {
    std::string out;
    while (!token.empty()) {
      if (token.starts_with(settings_.replacement)) {
        if (!first_ || !settings_.drop_at_start) out += ' ';
        token.remove_prefix(settings_.replacement.size());
      } else {
        out += token.front();
        token.remove_prefix(1);
      }
    }
    first_ = false;
    emit(out);
  }

 private:
  MetaspaceSettings settings_;
  bool first_ = true;
};

class SpaceJoinerStage : public DecodeStage {
 public:
  SpaceJoinerStage(Next next, NoSettings) : next_(std::move(next)) {}
  void text(std::string_view part) override {
    if (gap_) next_->text(" ");
    gap_ = false;
    next_->text(part);
  }
  void end_token() override {
    text({});
    gap_ = true;
  }
  void finish() override { next_->finish(); }

 private:
  Next next_;
  bool gap_ = false;
};

class Sequence : public TokenDecoder {
 public:
  explicit Sequence(const Component& component) {
    for (const Component& child : component.children("decoders")) {
      parts_.push_back(read_decoder(child));
    }
  }
  Next start(Next next) const override {
    for (size_t i = parts_.size(); i-- > 0;) next = parts_[i]->start(std::move(next));
    return next;
  }

 private:
  std::vector<std::unique_ptr<TokenDecoder>> parts_;
};

template <typename Stage, typename Settings>
std::unique_ptr<TokenDecoder> make(Settings settings) {
  return std::make_unique<StageDecoder<Stage, Settings>>(std::move(settings));
}

std::string one_character(const Component& component, const std::string& key,
                          const std::string& fallback) {
  const std::string text = component.text_or(key, fallback);
  size_t length = 0;
  if (!text.empty()) next_code_point(text, length);
  if (text.empty() || length != text.size()) {
    component.refuse("'" + key + "' must be one character");
  }
  return text;
}

}  // namespace

std::unique_ptr<TokenDecoder> read_decoder(const Component& component) {
  const std::string type = component.type();
  if (type == "ByteLevel") return make<ByteLevelStage>(NoSettings{});
  if (type == "ByteFallback") return make<ByteFallbackStage>(NoSettings{});
  if (type == "Fuse") return make<FuseStage>(NoSettings{});
  if (type == "Strip") {
    return make<StripStage>(StripSettings{one_character(component, "content", " "),
                                          component.size("start"), component.size("stop")});
  }
  if (type == "Replace") {
    return make<ReplaceStage>(ReplaceSettings{read_pattern(component), component.text("content")});
  }
  if (type == "Metaspace") {
    const std::string scheme = component.text_or(
        "prepend_scheme", component.flag("add_prefix_space", true) ? "always" : "never");
    return make<MetaspaceStage>(
        MetaspaceSettings{one_character(component, "replacement", "▁"), scheme != "never"});
  }
  if (type == "Sequence") return std::make_unique<Sequence>(component);
  component.refuse_type("decoder");
}

std::unique_ptr<TokenDecoder> make_space_joiner() { return make<SpaceJoinerStage>(NoSettings{}); }

}  // namespace llmctl::runtime::tokenizer
