#include <deque>
#include <vector>

#include "formats/core/error.h"
#include "formats/json.h"
#include "reshard/config_fields.h"
#include "reshard/families/family.h"
#include "reshard/layout.h"

namespace llmctl::reshard {

using nlohmann::ordered_json;

struct UserFamily::Storage {
  std::deque<std::string> texts;  // a deque never moves what it holds
  std::vector<std::string_view> architectures, model_types;
  std::vector<ConfigKey> keys;
  std::vector<TensorRule> tensors;
  std::vector<DropRule> drops;
  std::vector<FieldSetting> settings;
  Family family{};

  std::string_view keep(const std::string& text) { return texts.emplace_back(text); }
};

UserFamily::UserFamily() : storage_(std::make_unique<Storage>()) {}
UserFamily::~UserFamily() = default;

std::unique_ptr<UserFamily> UserFamily::parse(std::string_view text, const std::string& where) {
  const ordered_json json = formats::parse_json(text, where);
  if (!json.is_object()) throw_invalid(where, "a JSON object expected");
  std::unique_ptr<UserFamily> user(new UserFamily());
  Storage& s = *user->storage_;
  const auto get_text = [&](const ordered_json& value, const std::string& key) {
    if (!value.is_string()) throw_invalid(where, "'" + key + "' must be a text");
    return s.keep(value.get<std::string>());
  };
  const auto get_texts = [&](const char* key, std::vector<std::string_view>& out) {
    if (!json.contains(key)) return;
    if (!json[key].is_array()) throw_invalid(where, std::string("'") + key + "' must be a list");
    for (const ordered_json& item : json[key]) out.push_back(get_text(item, key));
  };
  const auto get_object = [&](const char* key) -> ordered_json {
    if (!json.contains(key)) return ordered_json::object();
    if (!json[key].is_object()) {
      throw_invalid(where, std::string("'") + key + "' must be an object");
    }
    return json[key];
  };
  static constexpr std::string_view kKnown[] = {
      "name", "like", "architectures", "model_types", "keys", "set", "prefix", "tensors", "drop"};
  for (const auto& [key, value] : json.items()) {
    if (std::find(std::begin(kKnown), std::end(kKnown), key) == std::end(kKnown)) {
      throw_invalid(where, "unknown key '" + printable(key) + "'", "see docs/adding-a-family.md");
    }
  }
  if (!json.contains("name")) throw_invalid(where, "'name' is missing");
  if (!json.contains("tensors")) throw_invalid(where, "'tensors' is missing");
  const Family* base = nullptr;
  if (json.contains("like")) {
    base = find_family_by_name(get_text(json["like"], "like"));
    if (base == nullptr) throw_invalid(where, "'like' names no built-in family");
  }
  get_texts("architectures", s.architectures);
  get_texts("model_types", s.model_types);
  if (s.architectures.empty() && s.model_types.empty()) {
    throw_invalid(where,
                  "'architectures' or 'model_types' must say which config.json it answers to");
  }
  if (s.architectures.empty()) s.architectures.push_back(s.model_types.front());
  if (s.model_types.empty()) s.model_types.push_back(s.architectures.front());
  const ordered_json keys_object = get_object("keys");
  for (const auto& [key, value] : keys_object.items()) {
    const std::string_view field = get_text(value, key);
    if (find_config_field(field) == nullptr) {
      throw_invalid(
          where,
          "'" + printable(key) + "': no field is called '" + printable(std::string(field)) + "'",
          "see docs/adding-a-family.md");
    }
    s.keys.push_back({s.keep(key), field});
  }
  if (base != nullptr) s.keys.insert(s.keys.end(), base->keys.begin(), base->keys.end());
  const ordered_json set_object = get_object("set");
  for (const auto& [key, value] : set_object.items()) {
    const ConfigField* field = find_config_field(key);
    if (field == nullptr)
      throw_invalid(where, "'set': no field is called '" + printable(key) + "'");
    ModelConfig probe;
    set_field_json(probe, *field, value, where, key);
    s.settings.push_back({field->name, s.keep(get_field_text(probe, *field))});
  }
  const ordered_json tensors_object = get_object("tensors");
  for (const auto& [name, value] : tensors_object.items()) {
    const ordered_json lines = value.is_array() ? value : ordered_json::array({value});
    for (const ordered_json& line : lines) {
      const TensorRule rule{s.keep(name), get_text(line, name)};
      try {
        parse_layout(rule.layout);
      } catch (Error& error) {
        error.add_context(where + ": tensor '" + printable(name) + "'");
        throw;
      }
      s.tensors.push_back(rule);
    }
  }
  const ordered_json drop_object = get_object("drop");
  for (const auto& [name, value] : drop_object.items()) {
    s.drops.push_back({s.keep(name), get_text(value, name)});
  }
  s.family = Family{
      .name = get_text(json["name"], "name"),
      .architectures = s.architectures,
      .model_types = s.model_types,
      .defaults = base != nullptr ? base->defaults : [](ModelConfig&) {},
      .keys = s.keys,
      .read_rest = base != nullptr ? base->read_rest : nullptr,
      .write_rest = base != nullptr ? base->write_rest : nullptr,
      .prefix = json.contains("prefix") ? get_text(json["prefix"], "prefix") : std::string_view(),
      .tensors = s.tensors,
      .drops = s.drops,
      .settings = s.settings};
  return user;
}

const Family& UserFamily::family() const { return storage_->family; }

}  // namespace llmctl::reshard
