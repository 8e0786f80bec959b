#include "runtime/tokenizer/precompiled.h"

#include <utf8proc.h>

#include <optional>
#include <utility>

#include "runtime/tokenizer/base64.h"
#include "runtime/tokenizer/charsmap.h"
#include "runtime/tokenizer/unicode.h"

namespace llmctl::runtime::tokenizer {

namespace {

class Precompiled : public Normalizer {
 public:
  explicit Precompiled(const Component& component) {
    const std::optional<std::string> bytes = decode_base64(component.text("precompiled_charsmap"));
    if (!bytes) component.refuse("'precompiled_charsmap' is not base64");
    const std::string wrong = map_.read(*bytes);
    if (!wrong.empty()) component.refuse("'precompiled_charsmap': " + wrong);
  }

  // A whole grapheme cluster is tried first only if it is shorter than 6 bytes. That is what the
  // library does, and what models were made with.
  void apply(Fragment& fragment) const override {
    const std::string& text = fragment.text;
    std::string out;
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = cluster_end(text, begin);
      const std::string_view cluster = std::string_view(text).substr(begin, end - begin);
      begin = end;
      if (cluster.size() < 6) {
        if (const auto match = map_.find_shortest(cluster)) {
          out += match->replacement;
          continue;
        }
      }
      for (size_t position = 0; position < cluster.size();) {
        const size_t first = position;
        next_code_point(cluster, position);
        const std::string_view character = cluster.substr(first, position - first);
        const auto match = map_.find_shortest(character);
        out += match ? match->replacement : character;
      }
    }
    fragment.text = std::move(out);
  }

 private:
  static size_t cluster_end(std::string_view text, size_t begin) {
    size_t end = begin;
    utf8proc_int32_t state = 0;
    auto previous = static_cast<utf8proc_int32_t>(next_code_point(text, end));
    while (end < text.size()) {
      size_t after = end;
      const auto next = static_cast<utf8proc_int32_t>(next_code_point(text, after));
      if (utf8proc_grapheme_break_stateful(previous, next, &state)) break;
      previous = next;
      end = after;
    }
    return end;
  }

  CharsMap map_;
};

}  // namespace

std::unique_ptr<Normalizer> read_precompiled(const Component& component) {
  return std::make_unique<Precompiled>(component);
}

}  // namespace llmctl::runtime::tokenizer
