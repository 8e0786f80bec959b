// GPT-2's alphabet: every byte as one printable character, so that BPE can work on text.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace llmctl::runtime::tokenizer {

/// The character that stands for each byte: 33-126, 161-172 and 174-255 are themselves, the other
/// 68 bytes in ascending order are U+0100 and on (openai/gpt-2 encoder.py bytes_to_unicode).
const std::array<char32_t, 256>& byte_alphabet();

/// Appends `bytes` spelled in the byte alphabet.
void append_byte_level(std::string_view bytes, std::string& text);

/// The bytes that `text` spells; nothing when it holds a character outside the alphabet.
std::optional<std::string> bytes_from_byte_level(std::string_view text);

}  // namespace llmctl::runtime::tokenizer
