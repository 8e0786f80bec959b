#include "runtime/chat/chat.h"

#include <array>
#include <string_view>

#include "formats/core/error.h"
#include "formats/core/file.h"
#include "formats/json.h"
#include "runtime/tokenizer/config.h"

namespace llmctl::runtime::chat {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr uint64_t kMaxFileBytes = uint64_t{16} << 20;

/// A template and the place it comes from.
struct Source {
  std::string text, where;
};

bool has_file(const fs::path& path) {
  std::error_code ec;
  return fs::exists(path, ec);
}

/// The value of "chat_template": a text, or a list of named ones.
std::optional<Source> choose(const Json& value, const std::string& where) {
  if (value.is_null()) return std::nullopt;
  if (value.is_string()) return Source{value.get<std::string>(), where};
  std::string names;
  if (value.is_array()) {
    for (const Json& item : value) {
      if (!item.is_object() || !item.contains("name") || !item["name"].is_string() ||
          !item.contains("template") || !item["template"].is_string()) {
        throw_invalid(where, "'chat_template' must hold objects of a name and a template");
      }
      const auto name = item["name"].get<std::string>();
      if (name == "default") return Source{item["template"].get<std::string>(), where};
      names += (names.empty() ? "" : ", ") + printable(name, 60);
    }
    throw_invalid(where, "no chat template is called 'default'; there are: " + names,
                  "write the one that you mean into a file for --chat-template");
  }
  throw_invalid(where, "'chat_template' must be a string or a list");
}

std::optional<Source> find_source(const fs::path& directory) {
  const fs::path plain = directory / "chat_template.jinja";
  if (has_file(plain)) return Source{read_text_file(plain, kMaxFileBytes), plain.string()};
  for (const char* name : {"chat_template.json", "tokenizer_config.json"}) {
    const fs::path path = directory / name;
    if (!has_file(path)) continue;
    const Json json = formats::parse_json(read_text_file(path, kMaxFileBytes), path.string());
    if (!json.is_object() || !json.contains("chat_template")) continue;
    if (auto source = choose(json["chat_template"], path.string())) return source;
  }
  return std::nullopt;
}

/// What the classes of transformers take for a token that no file names.
struct ClassTokens {
  std::string_view tokenizer_class, bos, eos, unk;
};
constexpr std::array kClassTokens = {
    ClassTokens{"LlamaTokenizer", "<s>", "</s>", "<unk>"},
    ClassTokens{"CodeLlamaTokenizer", "<s>", "</s>", "<unk>"},
    ClassTokens{"GemmaTokenizer", "<bos>", "<eos>", "<unk>"},
    ClassTokens{"GPT2Tokenizer", "<|endoftext|>", "<|endoftext|>", "<|endoftext|>"},
    ClassTokens{"Qwen2Tokenizer", "", "<|endoftext|>", "<|endoftext|>"},
    ClassTokens{"BloomTokenizer", "<s>", "</s>", "<unk>"},
};

Dict special_tokens(const fs::path& directory) {
  const tokenizer::TokenizerConfig config = tokenizer::read_tokenizer_config(directory);
  Dict variables;
  for (const ClassTokens& tokens : kClassTokens) {
    if (tokens.tokenizer_class != config.tokenizer_class) continue;
    if (!tokens.bos.empty()) variables.set("bos_token", std::string(tokens.bos));
    variables.set("eos_token", std::string(tokens.eos));
    variables.set("unk_token", std::string(tokens.unk));
  }
  for (const auto& [role, content] : config.roles) {
    if (role.find('[') == std::string::npos) variables.set(role, content);
  }
  return variables;
}

/// A message as the template sees it.
Value message_value(const Json& message, size_t number) {
  const std::string where = "message " + std::to_string(number + 1);
  if (!message.is_object())
    throw_invalid(where, "an object with \"role\" and \"content\" expected");
  if (!message.contains("role") || !message["role"].is_string()) {
    throw_invalid(where, "\"role\" must be a string, such as \"user\"");
  }
  if (!message.contains("content") ||
      !(message["content"].is_string() || message["content"].is_array())) {
    throw_invalid(where, "\"content\" must be a string");
  }
  Dict dict;
  for (const auto& [key, value] : message.items()) {
    if (!value.is_null()) dict.set(key, Value::from_json(value));
  }
  return Value(std::move(dict));
}

}  // namespace

std::string ChatFormat::render(const Json& messages, bool add_generation_prompt) const {
  if (!messages.is_array() || messages.empty()) {
    throw_invalid("messages", "a list of at least one message expected");
  }
  List list;
  for (const Json& message : messages) {
    list.items.push_back(message_value(message, list.items.size()));
  }
  Dict variables = variables_;
  variables.set("messages", Value(std::move(list)));
  variables.set("tools", Value());
  variables.set("documents", Value());
  variables.set("add_generation_prompt", Value(add_generation_prompt));
  return form_.render(variables);
}

std::optional<ChatFormat> open_chat_format(const fs::path& directory,
                                           const std::optional<fs::path>& template_file) {
  const std::optional<Source> source =
      template_file ? Source{read_text_file(*template_file, kMaxFileBytes), template_file->string()}
                    : find_source(directory);
  if (!source) return std::nullopt;
  return ChatFormat(Template(source->text, source->where), special_tokens(directory));
}

}  // namespace llmctl::runtime::chat
