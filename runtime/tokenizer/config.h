// What the small JSON files beside a tokenizer say about it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/tokenizer/added_tokens.h"
#include "runtime/tokenizer/component.h"

namespace llmctl::runtime::tokenizer {

/// From tokenizer_config.json, special_tokens_map.json, added_tokens.json and config.json; every
/// file and every key may be absent.
struct TokenizerConfig {
  std::filesystem::path directory;
  std::string tokenizer_class;              ///< without a trailing "Fast"; empty when not stated
  std::string model_type;                   ///< of config.json
  std::optional<int32_t> bos_token_id;      ///< of config.json
  std::optional<int32_t> num_image_tokens;  ///< ids in front of ChatGLM-6B's text
  std::optional<bool> legacy;               ///< of the LLaMA classes
  std::optional<bool> add_bos_token, add_eos_token, add_prefix_space;
  /// bos_token, eos_token, unk_token, ... and their contents.
  std::vector<std::pair<std::string, std::string>> roles;
  /// Tokens listed with their ids (added_tokens_decoder, added_tokens.json).
  std::vector<AddedToken> added_tokens;

  /// The content of "bos_token" and the like; null when not stated.
  const std::string* find_role(const std::string& role) const;
};

/// Throws kInvalidInput for a file that is there but broken.
TokenizerConfig read_tokenizer_config(const std::filesystem::path& directory);

/// One entry of an "added_tokens" list or of added_tokens_decoder, its id given apart.
AddedToken read_added_token(const Component& component, int64_t id);

}  // namespace llmctl::runtime::tokenizer
