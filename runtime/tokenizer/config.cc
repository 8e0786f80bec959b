#include "runtime/tokenizer/config.h"

#include <array>
#include <charconv>
#include <limits>
#include <unordered_set>

#include "formats/core/error.h"
#include "formats/core/file.h"
#include "formats/json.h"

namespace llmctl::runtime::tokenizer {

namespace {

constexpr uint64_t kMaxConfigBytes = uint64_t{16} << 20;

/// Null when the file is absent.
Json read_optional_json(const std::filesystem::path& path) {
  std::error_code ec;
  if (!std::filesystem::exists(path, ec)) return nullptr;
  return formats::parse_json(read_text_file(path, kMaxConfigBytes), path.string());
}

std::optional<bool> find_flag(const Component& component, const std::string& key) {
  if (!component.has(key)) return std::nullopt;
  return component.flag(key, false);
}

std::optional<int32_t> find_id(const Component& component, const std::string& key) {
  if (!component.has(key)) return std::nullopt;
  const int64_t id = component.size(key);
  if (id > std::numeric_limits<int32_t>::max()) {
    component.refuse("'" + key + "' " + std::to_string(id) + " is beyond 2^31 - 1");
  }
  return static_cast<int32_t>(id);
}

void read_roles(const Component& component, TokenizerConfig& config) {
  static constexpr std::array<const char*, 7> kRoles = {
      "bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"};
  const auto add = [&](const std::string& role, const Json& value) {
    if (value.is_null() || config.find_role(role) != nullptr) return;
    config.roles.emplace_back(role, value.is_object()
                                        ? Component(value, component.where()).text("content")
                                        : value.get<std::string>());
  };
  for (const char* role : kRoles) {
    if (!component.has(role)) continue;
    const Json& value = component.json().at(role);
    if (!value.is_string() && !value.is_object()) {
      component.refuse("'" + std::string(role) + "' must be a string or an object");
    }
    add(role, value);
  }
  if (!component.has("additional_special_tokens")) return;
  const Json& more = component.json().at("additional_special_tokens");
  if (!more.is_array()) component.refuse("'additional_special_tokens' must be a list");
  for (size_t i = 0; i < more.size(); ++i) {
    if (!more[i].is_string() && !more[i].is_object()) {
      component.refuse("'additional_special_tokens' must hold strings or objects");
    }
    add("additional_special_tokens[" + std::to_string(i) + "]", more[i]);
  }
}

void read_added_tokens_decoder(const Component& component, TokenizerConfig& config) {
  if (!component.has("added_tokens_decoder")) return;
  const Component decoder = component.child("added_tokens_decoder");
  for (const auto& [key, value] : decoder.json().items()) {
    int64_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size()) {
      decoder.refuse("'" + printable(key, 40) + "' is not an id");
    }
    config.added_tokens.push_back(
        read_added_token(Component(value, decoder.where() + "." + printable(key, 40)), id));
  }
}

/// added_tokens.json: content -> id.
void read_added_tokens_json(const Component& component, TokenizerConfig& config) {
  std::unordered_set<std::string> contents;
  for (const AddedToken& token : config.added_tokens) contents.insert(token.content);
  for (const auto& [content, value] : component.json().items()) {
    const bool known = !contents.insert(content).second;
    const int64_t id = formats::get_size(value, component.where(), content);
    if (id > std::numeric_limits<int32_t>::max()) component.refuse("an id beyond 2^31 - 1");
    if (known) continue;
    AddedToken token;
    token.id = static_cast<int32_t>(id);
    token.content = content;
    config.added_tokens.push_back(token);
  }
}

}  // namespace

const std::string* TokenizerConfig::find_role(const std::string& role) const {
  for (const auto& [name, content] : roles) {
    if (name == role) return &content;
  }
  return nullptr;
}

AddedToken read_added_token(const Component& component, int64_t id) {
  if (id < 0 || id > std::numeric_limits<int32_t>::max()) {
    component.refuse("id " + std::to_string(id) + " is not between 0 and 2^31 - 1");
  }
  AddedToken token;
  token.id = static_cast<int32_t>(id);
  token.content = component.text("content");
  token.special = component.flag("special", false);
  token.single_word = component.flag("single_word", false);
  token.lstrip = component.flag("lstrip", false);
  token.rstrip = component.flag("rstrip", false);
  token.normalized = component.flag("normalized", !token.special);
  return token;
}

TokenizerConfig read_tokenizer_config(const std::filesystem::path& directory) {
  TokenizerConfig config;
  config.directory = directory;
  const auto with = [&](const char* name, auto&& use) {
    const Json json = read_optional_json(directory / name);
    if (!json.is_null()) use(Component(json, (directory / name).string()));
  };
  with("tokenizer_config.json", [&](const Component& component) {
    config.tokenizer_class = component.text_or("tokenizer_class", "");
    if (config.tokenizer_class.ends_with("Fast")) {
      config.tokenizer_class.resize(config.tokenizer_class.size() - 4);
    }
    config.legacy = find_flag(component, "legacy");
    config.add_bos_token = find_flag(component, "add_bos_token");
    config.add_eos_token = find_flag(component, "add_eos_token");
    config.add_prefix_space = find_flag(component, "add_prefix_space");
    config.num_image_tokens = find_id(component, "num_image_tokens");
    read_roles(component, config);
    read_added_tokens_decoder(component, config);
  });
  with("special_tokens_map.json",
       [&](const Component& component) { read_roles(component, config); });
  with("added_tokens.json",
       [&](const Component& component) { read_added_tokens_json(component, config); });
  with("config.json", [&](const Component& component) {
    config.model_type = component.text_or("model_type", "");
    // Some models list several; then it is no help in finding the one.
    if (component.has("bos_token_id") && !component.json().at("bos_token_id").is_array()) {
      config.bos_token_id = find_id(component, "bos_token_id");
    }
  });
  return config;
}

}  // namespace llmctl::runtime::tokenizer
