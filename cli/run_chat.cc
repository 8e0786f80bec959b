#include "cli/run_chat.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>

#include "cli/run_input.h"
#include "formats/core/error.h"
#include "formats/json.h"

namespace llmctl::cli {
namespace {

using Json = nlohmann::ordered_json;

Json message(const char* role, const std::string& content) {
  return {{"role", role}, {"content", content}};
}

runtime::chat::ChatFormat open_format(const formats::Checkpoint& checkpoint,
                                      const RunOptions& options) {
  std::optional<std::filesystem::path> file;
  if (!options.chat_template.empty()) file = options.chat_template;
  const auto directory = find_tokenizer_directory(checkpoint);
  auto format = runtime::chat::open_chat_format(directory.value_or("."), file);
  if (!format) {
    throw_usage("--chat",
                "the model has no chat template (chat_template in tokenizer_config.json, or "
                "chat_template.jinja)",
                "give --chat-template FILE, or leave --chat out");
  }
  return *std::move(format);
}

/// Where a conversation stands between two turns of a session.
struct Conversation {
  Json messages;                ///< what was said and answered
  Json asked;                   ///< and the question after that
  std::vector<int32_t> prompt;  ///< of `asked`
};

}  // namespace

Chat::Chat(const formats::Checkpoint& checkpoint, const runtime::Tokenizer& tokenizer,
           const RunOptions& options)
    : tokenizer_(tokenizer), format_(open_format(checkpoint, options)), before_(Json::array()) {
  if (!options.system.empty()) before_.push_back(message("system", options.system));
}

std::vector<int32_t> Chat::encode(const Json& messages) const {
  std::vector<int32_t> ids = tokenizer_.encode_chat(format_.render(messages, true));
  if (ids.empty()) throw_usage("--chat", "the chat template made an empty prompt");
  return ids;
}

std::vector<int32_t> Chat::encode_turn(const std::string& text) const {
  Json messages = before_;
  messages.push_back(message("user", text));
  return encode(messages);
}

std::vector<int32_t> Chat::encode_file(const std::string& path) const {
  try {
    Json messages = formats::parse_json(read_text_file(path), path);
    // An OpenAI request holds the same list.
    if (messages.is_object() && messages.contains("messages")) {
      messages = Json(messages["messages"]);
    }
    if (!before_.empty() && messages.is_array()) {
      if (!messages.empty() && messages[0].is_object() &&
          messages[0].value("role", Json()) == "system") {
        throw_usage("--system", "the conversation has a system message already");
      }
      messages.insert(messages.begin(), before_[0]);
    }
    return encode(messages);
  } catch (Error& error) {
    if (error.where().find(path) == std::string::npos && error.code() == ErrorCode::kInvalidInput) {
      error.add_context(path);
    }
    throw;
  }
}

SessionPrompts Chat::session_prompts() const {
  const auto state = std::make_shared<Conversation>();
  return {[this, state](const std::vector<int32_t>& context, const std::string& text) {
    Conversation& now = *state;
    if (context.empty()) {
      now = {before_, {}, {}};
    } else if (!now.prompt.empty() && context.size() >= now.prompt.size() &&
               std::equal(now.prompt.begin(), now.prompt.end(), context.begin())) {
      // The question was answered; one that was refused is as if not asked.
      const std::vector<int32_t> answer(
          context.begin() + static_cast<std::ptrdiff_t>(now.prompt.size()), context.end());
      now.messages = std::move(now.asked);
      now.messages.push_back(message("assistant", tokenizer_.decode(answer, true)));
    }
    now.asked = now.messages;
    now.asked.push_back(message("user", text));
    now.prompt.clear();
    try {
      now.prompt = encode(now.asked);
    } catch (const Error& error) {
      // A session goes on after what it refuses.
      throw_usage(error.where(), error.message(), error.hint());
    }
    return now.prompt;
  }};
}

}  // namespace llmctl::cli
