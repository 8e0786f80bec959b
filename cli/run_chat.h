// `llmctl run --chat`: conversations in the form that the model was trained on.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/run_interactive.h"
#include "cli/run_options.h"
#include "formats/checkpoint.h"
#include "runtime/chat/chat.h"
#include "runtime/tokenizer/tokenizer.h"

namespace llmctl::cli {

/// The model's chat format, and what is said before the user speaks. Must not outlive the
/// tokenizer.
class Chat {
 public:
  /// Throws kUsage when the model has no chat template and `options` give none.
  Chat(const formats::Checkpoint& checkpoint, const runtime::Tokenizer& tokenizer,
       const RunOptions& options);

  /// The prompt for one turn of the user.
  std::vector<int32_t> encode_turn(const std::string& text) const;
  /// The prompt for the conversation in --messages.
  std::vector<int32_t> encode_file(const std::string& path) const;
  /// The prompts of a session: each holds the whole conversation. Must not outlive this.
  SessionPrompts session_prompts() const;

 private:
  std::vector<int32_t> encode(const nlohmann::ordered_json& messages) const;

  const runtime::Tokenizer& tokenizer_;
  runtime::chat::ChatFormat format_;
  nlohmann::ordered_json before_;  ///< the system's message, if any
};

}  // namespace llmctl::cli
