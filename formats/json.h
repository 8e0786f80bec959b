// Strict JSON for files that cannot be trusted.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace llmctl::formats {

/// Parses `text`. Refuses (kInvalidInput, naming `where`) malformed input, duplicate keys, and
/// nesting deeper than 64. Never recurses on the input's depth beyond that. Time and memory are
/// linear in the text; looking a key up in the result is linear in the object's members.
nlohmann::ordered_json parse_json(std::string_view text, const std::string& where);

/// A non-negative integer that fits int64_t; kInvalidInput otherwise (negative, fractional,
/// boolean, text). `name` is the key for the message.
int64_t get_size(const nlohmann::ordered_json& value, const std::string& where,
                 const std::string& name);

}  // namespace llmctl::formats
