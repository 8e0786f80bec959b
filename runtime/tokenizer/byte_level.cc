#include "runtime/tokenizer/byte_level.h"

#include "runtime/tokenizer/unicode.h"

namespace llmctl::runtime::tokenizer {

namespace {

constexpr char32_t kAlphabetEnd = 0x100 + 68;

std::array<char32_t, 256> make_alphabet() {
  std::array<char32_t, 256> alphabet{};
  char32_t next = 0x100;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool printable_byte = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
    alphabet[byte] = printable_byte ? byte : next++;
  }
  return alphabet;
}

}  // namespace

const std::array<char32_t, 256>& byte_alphabet() {
  static const std::array<char32_t, 256> alphabet = make_alphabet();
  return alphabet;
}

void append_byte_level(std::string_view bytes, std::string& text) {
  // The alphabet lies below U+0800: one or two bytes a character.
  for (const char c : bytes) {
    const char32_t letter = byte_alphabet()[static_cast<uint8_t>(c)];
    if (letter < 0x80) {
      text += static_cast<char>(letter);
    } else {
      text += static_cast<char>(0xC0 | (letter >> 6));
      text += static_cast<char>(0x80 | (letter & 0x3F));
    }
  }
}

std::optional<std::string> bytes_from_byte_level(std::string_view text) {
  static const std::array<int16_t, kAlphabetEnd> inverse = [] {
    std::array<int16_t, kAlphabetEnd> table{};
    table.fill(-1);
    for (size_t byte = 0; byte < 256; ++byte) {
      table[byte_alphabet()[byte]] = static_cast<int16_t>(byte);
    }
    return table;
  }();
  std::string bytes;
  for (size_t position = 0; position < text.size();) {
    const char32_t c = next_code_point(text, position);
    if (c >= kAlphabetEnd || inverse[c] < 0) return std::nullopt;
    bytes += static_cast<char>(inverse[c]);
  }
  return bytes;
}

}  // namespace llmctl::runtime::tokenizer
