#include "runtime/tokenizer/normalizer.h"

#include <utility>
#include <vector>

#include "runtime/tokenizer/byte_level.h"
#include "runtime/tokenizer/pattern.h"
#include "runtime/tokenizer/precompiled.h"
#include "runtime/tokenizer/unicode.h"

namespace llmctl::runtime::tokenizer {

namespace {

class UnicodeForm : public Normalizer {
 public:
  explicit UnicodeForm(NormalForm form) : form_(form) {}
  void apply(Fragment& fragment) const override {
    fragment.text = normalize_unicode(fragment.text, form_);
  }

 private:
  NormalForm form_;
};

class Prepend : public Normalizer {
 public:
  explicit Prepend(const Component& component) : prefix_(component.text("prepend")) {}
  void apply(Fragment& fragment) const override {
    if (!fragment.text.empty()) fragment.text.insert(0, prefix_);
  }

 private:
  std::string prefix_;
};

class Replace : public Normalizer {
 public:
  explicit Replace(const Component& component)
      : pattern_(read_pattern(component)), content_(component.text("content")) {}

  void apply(Fragment& fragment) const override {
    std::vector<Span> spans;
    pattern_->find(fragment.text, spans);
    std::string out;
    for (const Span& span : spans) {
      if (span.is_match) {
        out += content_;
      } else {
        out.append(fragment.text, span.begin, span.end - span.begin);
      }
    }
    fragment.text = std::move(out);
  }

 private:
  std::unique_ptr<Pattern> pattern_;
  std::string content_;
};

class Strip : public Normalizer {
 public:
  explicit Strip(const Component& component)
      : left_(component.flag("strip_left", true)), right_(component.flag("strip_right", true)) {}

  void apply(Fragment& fragment) const override {
    const std::string& text = fragment.text;
    // [first, last): from the first to behind the last character that is not white space.
    size_t first = text.size(), last = 0;
    for (size_t position = 0; position < text.size();) {
      const size_t begin = position;
      if (is_white_space(next_code_point(text, position))) continue;
      first = std::min(first, begin);
      last = position;
    }
    if (!left_) first = 0;
    if (!right_) last = text.size();
    if (first > 0) fragment.at_start = false;
    fragment.text = first < last ? text.substr(first, last - first) : std::string();
  }

 private:
  bool left_, right_;
};

/// Rewrites character by character.
class PerCharacter : public Normalizer {
 public:
  using Rewrite = void (*)(char32_t, std::string&);
  explicit PerCharacter(Rewrite rewrite) : rewrite_(rewrite) {}

  void apply(Fragment& fragment) const override {
    std::string out;
    out.reserve(fragment.text.size());
    for (size_t position = 0; position < fragment.text.size();) {
      rewrite_(next_code_point(fragment.text, position), out);
    }
    fragment.text = std::move(out);
  }

 private:
  Rewrite rewrite_;
};

void keep_unless_accent(char32_t c, std::string& out) {
  if (!is_combining_mark(c)) append_utf8(c, out);
}

class ByteLevel : public Normalizer {
 public:
  void apply(Fragment& fragment) const override {
    std::string out;
    append_byte_level(fragment.text, out);
    fragment.text = std::move(out);
  }
};

class Sequence : public Normalizer {
 public:
  explicit Sequence(const Component& component) {
    for (const Component& child : component.children("normalizers")) {
      parts_.push_back(read_normalizer(child));
    }
  }
  void apply(Fragment& fragment) const override {
    for (const auto& part : parts_) part->apply(fragment);
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> parts_;
};

}  // namespace

std::unique_ptr<Normalizer> read_normalizer(const Component& component) {
  const std::string type = component.type();
  if (type == "NFC") return std::make_unique<UnicodeForm>(NormalForm::kNfc);
  if (type == "NFD") return std::make_unique<UnicodeForm>(NormalForm::kNfd);
  if (type == "NFKC") return std::make_unique<UnicodeForm>(NormalForm::kNfkc);
  if (type == "NFKD") return std::make_unique<UnicodeForm>(NormalForm::kNfkd);
  if (type == "Prepend") return std::make_unique<Prepend>(component);
  if (type == "Replace") return std::make_unique<Replace>(component);
  if (type == "Strip") return std::make_unique<Strip>(component);
  if (type == "StripAccents") return std::make_unique<PerCharacter>(keep_unless_accent);
  if (type == "Lowercase") return std::make_unique<PerCharacter>(append_lowercase);
  if (type == "ByteLevel") return std::make_unique<ByteLevel>();
  if (type == "Precompiled") return read_precompiled(component);
  if (type == "Sequence") return std::make_unique<Sequence>(component);
  component.refuse_type("normalizer");
}

}  // namespace llmctl::runtime::tokenizer
