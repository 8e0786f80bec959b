// Base64, in which tokenizer files spell bytes.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace llmctl::runtime::tokenizer {

/// The bytes that `text` spells (RFC 4648, padding optional); nothing for any other character, or
/// for padding anywhere but at the end.
std::optional<std::string> decode_base64(std::string_view text);

}  // namespace llmctl::runtime::tokenizer
