#include "runtime/tokenizer/precompiled.h"

#include <utf8proc.h>

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "runtime/tokenizer/base64.h"
#include "runtime/tokenizer/unicode.h"

namespace llmctl::runtime::tokenizer {

namespace {

uint32_t read_u32(std::string_view bytes, size_t at) {
  uint32_t value = 0;
  for (size_t i = 4; i-- > 0;) value = value << 8 | static_cast<uint8_t>(bytes[at + i]);
  return value;
}

class Precompiled : public Normalizer {
 public:
  explicit Precompiled(const Component& component) {
    const std::optional<std::string> bytes = decode_base64(component.text("precompiled_charsmap"));
    if (!bytes) component.refuse("'precompiled_charsmap' is not base64");
    const std::string& blob = *bytes;
    if (blob.size() < 4) component.refuse("'precompiled_charsmap' has no trie");
    const uint32_t trie_bytes = read_u32(blob, 0);
    if (trie_bytes % 4 != 0 || trie_bytes > blob.size() - 4) {
      component.refuse("'precompiled_charsmap': a trie of " + std::to_string(trie_bytes) +
                       " bytes in " + std::to_string(blob.size() - 4));
    }
    for (size_t at = 4; at < 4 + size_t{trie_bytes}; at += 4) units_.push_back(read_u32(blob, at));
    replacements_ = blob.substr(4 + size_t{trie_bytes});
    if (!is_valid_utf8(replacements_)) {
      component.refuse("'precompiled_charsmap': replacements that are not UTF-8");
    }
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
        if (const auto replacement = find(cluster)) {
          out += *replacement;
          continue;
        }
      }
      for (size_t position = 0; position < cluster.size();) {
        const size_t first = position;
        next_code_point(cluster, position);
        const std::string_view character = cluster.substr(first, position - first);
        out += find(character).value_or(character);
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

  /// The replacement of the shortest key that `text` begins with (darts-clone's unit layout:
  /// offset in bits 10-30, scaled by bit 9; leaf flag bit 8; label in the low byte).
  std::optional<std::string_view> find(std::string_view text) const {
    if (units_.empty()) return std::nullopt;
    const auto offset = [](uint32_t unit) { return (unit >> 10) << ((unit & (1u << 9)) >> 6); };
    size_t node = offset(units_[0]);
    for (const char c : text) {
      const auto byte = static_cast<uint8_t>(c);
      if (byte == 0) return std::nullopt;
      node ^= byte;
      if (node >= units_.size()) return std::nullopt;
      const uint32_t unit = units_[node];
      if ((unit & (1u << 31 | 0xFFu)) != byte) return std::nullopt;
      node ^= offset(unit);
      if ((unit >> 8 & 1u) == 0) continue;
      if (node >= units_.size()) return std::nullopt;
      const size_t at = units_[node] & 0x7FFFFFFFu;
      if (at > replacements_.size()) return std::nullopt;
      // Inside a character: only a damaged map points there, and its text would not be UTF-8.
      if ((static_cast<uint8_t>(replacements_.c_str()[at]) & 0xC0) == 0x80) return std::nullopt;
      const std::string_view rest = std::string_view(replacements_).substr(at);
      return rest.substr(0, rest.find('\0'));
    }
    return std::nullopt;
  }

  std::vector<uint32_t> units_;
  std::string replacements_;
};

}  // namespace

std::unique_ptr<Normalizer> read_precompiled(const Component& component) {
  return std::make_unique<Precompiled>(component);
}

}  // namespace llmctl::runtime::tokenizer
