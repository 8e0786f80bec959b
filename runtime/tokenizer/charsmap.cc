#include "runtime/tokenizer/charsmap.h"

#include "runtime/tokenizer/unicode.h"

namespace llmctl::runtime::tokenizer {

namespace {

uint32_t read_u32(std::string_view bytes, size_t at) {
  uint32_t value = 0;
  for (size_t i = 4; i-- > 0;) value = value << 8 | static_cast<uint8_t>(bytes[at + i]);
  return value;
}

// darts-clone's unit layout: offset in bits 10-30, scaled by bit 9; leaf flag bit 8; label in the
// low byte, and bit 31 in a value.
constexpr uint32_t kLabel = 1u << 31 | 0xFFu;
uint32_t offset_of(uint32_t unit) { return (unit >> 10) << ((unit & (1u << 9)) >> 6); }

}  // namespace

std::string CharsMap::read(std::string_view blob) {
  if (blob.size() < 4) return "no trie";
  const uint32_t trie_bytes = read_u32(blob, 0);
  if (trie_bytes % 4 != 0 || trie_bytes > blob.size() - 4) {
    return "a trie of " + std::to_string(trie_bytes) + " bytes in " +
           std::to_string(blob.size() - 4);
  }
  const std::string_view replacements = blob.substr(4 + size_t{trie_bytes});
  if (!is_valid_utf8(replacements)) return "replacements that are not UTF-8";
  units_.clear();
  for (size_t at = 4; at < 4 + size_t{trie_bytes}; at += 4) units_.push_back(read_u32(blob, at));
  replacements_ = replacements;
  return {};
}

std::optional<CharsMap::Match> CharsMap::find(std::string_view text, bool longest) const {
  std::optional<Match> match;
  if (units_.empty()) return match;
  size_t node = offset_of(units_[0]);
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<uint8_t>(text[i]);
    if (byte == 0) break;
    node ^= byte;
    if (node >= units_.size()) break;
    const uint32_t unit = units_[node];
    if ((unit & kLabel) != byte) break;
    node ^= offset_of(unit);
    if ((unit >> 8 & 1u) == 0) continue;
    if (node >= units_.size()) break;
    const size_t at = units_[node] & 0x7FFFFFFFu;
    if (at > replacements_.size()) break;
    // Inside a character: only a damaged map points there, and its text would not be UTF-8.
    if ((static_cast<uint8_t>(replacements_.c_str()[at]) & 0xC0) == 0x80) break;
    const std::string_view rest = std::string_view(replacements_).substr(at);
    match = {i + 1, rest.substr(0, rest.find('\0'))};
    if (!longest) break;
  }
  return match;
}

bool CharsMap::is_prefix(std::string_view text) const {
  if (units_.empty()) return false;
  size_t node = offset_of(units_[0]);
  for (const char c : text) {
    const auto byte = static_cast<uint8_t>(c);
    if (byte == 0) return false;
    node ^= byte;
    if (node >= units_.size() || (units_[node] & kLabel) != byte) return false;
    node ^= offset_of(units_[node]);
  }
  return true;
}

}  // namespace llmctl::runtime::tokenizer
