// What turns a conversation into the prompt that a model was trained on.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "runtime/chat/template.h"

namespace llmctl::runtime::chat {

/// A model's chat template with the special tokens it prints. Immutable; safe to share.
class ChatFormat {
 public:
  /// `variables`: what the template sees beside the conversation (bos_token, ...).
  ChatFormat(Template form, Dict variables)
      : form_(std::move(form)), variables_(std::move(variables)) {}

  /// The prompt for `messages`, a list of objects with "role" and "content". With
  /// `add_generation_prompt` it ends where the assistant begins to speak. The template sees what
  /// transformers' apply_chat_template shows it: members that are null are left out of messages,
  /// `tools` and `documents` are none. Encode it with Tokenizer::encode_chat. Throws kInvalidInput
  /// for messages of another shape and where the template refuses them.
  std::string render(const nlohmann::ordered_json& messages, bool add_generation_prompt) const;

 private:
  Template form_;
  Dict variables_;
};

/// The chat format of a model directory: chat_template.jinja, else chat_template.json, else
/// `chat_template` of tokenizer_config.json (of a list the one called "default"). `template_file`,
/// when given, goes before all of them. Nothing when there is none.
std::optional<ChatFormat> open_chat_format(
    const std::filesystem::path& directory,
    const std::optional<std::filesystem::path>& template_file = std::nullopt);

}  // namespace llmctl::runtime::chat
