#include <algorithm>
#include <array>

#include "formats/core/error.h"
#include "reshard/config_fields.h"
#include "reshard/families/family.h"

namespace llmctl::reshard {

using nlohmann::ordered_json;

namespace {

const std::array kFamilies = {kGpt2Family,    kOptFamily,     kBloomFamily,
                              kGptJFamily,    kGptNeoXFamily, kLlamaFamily,
                              kMistralFamily, kQwen2Family,   kYuanFamily};

bool contains(std::span<const std::string_view> names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// The first of the keys that is there and not null.
const ordered_json* find_value(const ordered_json& json, std::initializer_list<const char*> keys) {
  for (const char* key : keys) {
    const auto it = json.find(key);
    if (it != json.end() && !it->is_null()) return &*it;
  }
  return nullptr;
}

std::vector<int64_t> read_ids(const ordered_json& value, const std::string& where,
                              const char* key) {
  std::vector<int64_t> ids;
  for (const ordered_json& item : value.is_array() ? value : ordered_json::array({value})) {
    if (!item.is_number_integer() ||
        (item.is_number_unsigned() && item.get<uint64_t>() > INT64_MAX)) {
      throw_invalid(where, std::string("'") + key + "' must be an integer or a list of integers");
    }
    ids.push_back(item.get<int64_t>());
  }
  return ids;
}

/// What transformers derives where `factor` is not given, or says nothing.
void complete_rope_scaling(ModelConfig& c, const ordered_json* factor, const std::string& where) {
  RopeScaling& scaling = c.rope_scaling;
  if (scaling.kind == "longrope" && factor != nullptr && scaling.factor <= 1.0 &&
      scaling.attention_factor == 0.0) {
    scaling.attention_factor = 1.0;
  }
  if (scaling.kind == "yarn" && factor == nullptr) {
    if (scaling.original_max_position_embeddings <= 0 || c.max_position_embeddings <= 0) {
      throw_invalid(where, "rope scaling yarn needs 'factor'");
    }
    scaling.factor = static_cast<double>(c.max_position_embeddings) /
                     static_cast<double>(scaling.original_max_position_embeddings);
  }
}

void read_rope(const Family& family, ModelConfig& c, const ordered_json& json,
               const std::string& where) {
  const ordered_json* parameters = find_value(json, {"rope_parameters"});
  const ordered_json* scaling = find_value(json, {"rope_scaling"});
  if (parameters == nullptr && scaling == nullptr) return;
  ordered_json stated = parameters != nullptr ? *parameters : *scaling;
  if (stated.is_object()) {
    // Phi-3 and its like keep it beside the scaling, and transformers lets that one win.
    const char* const original = "original_max_position_embeddings";
    if (const auto* outer = find_value(json, {original})) stated[original] = *outer;
  }
  c.rope_scaling = read_rope_scaling(stated, where);
  complete_rope_scaling(c, find_value(stated, {"factor"}), where);
  if (parameters == nullptr) return;
  if (const auto* theta = find_value(*parameters, {"rope_theta"}); theta && theta->is_number()) {
    c.rope_theta = theta->get<double>();
  }
  const auto* fraction = find_value(*parameters, {"partial_rotary_factor"});
  if (fraction == nullptr || !fraction->is_number() || c.head_dim <= 0) return;
  // Families of transformers whose code turns whole heads.
  static constexpr std::array<std::string_view, 4> kWhole = {"llama", "mistral", "qwen2", "yuan"};
  if (!contains(kWhole, std::string(family.name))) {
    set_rotary_fraction(c, c.head_dim, fraction->get<double>(), where);
  } else if (c.rope_scaling.kind != "default" && fraction->get<double>() != 1.0) {
    // With the default rope transformers does not look at the key; with a scaled one it computes
    // angles for a part of the head and fails to apply them.
    throw_invalid(where, "partial_rotary_factor beside a scaled rope is not known of this family",
                  "remove it from rope_parameters");
  }
}

}  // namespace

bool read_flag(const ordered_json& json, const char* key, bool otherwise,
               const std::string& where) {
  const ordered_json* value = find_value(json, {key});
  if (value == nullptr) return otherwise;
  if (!value->is_boolean()) {
    throw_invalid(where, std::string("'") + key + "' must be true or false");
  }
  return value->get<bool>();
}

double read_number(const ordered_json& json, const char* key, double otherwise,
                   const std::string& where) {
  const ordered_json* value = find_value(json, {key});
  if (value == nullptr) return otherwise;
  if (!value->is_number() || !std::isfinite(value->get<double>())) {
    throw_invalid(where, std::string("'") + key + "' must be a finite number");
  }
  return value->get<double>();
}

int64_t read_integer(const ordered_json& json, const char* key, int64_t otherwise,
                     const std::string& where) {
  const ordered_json* value = find_value(json, {key});
  if (value == nullptr) return otherwise;
  if (!value->is_number_integer() ||
      (value->is_number_unsigned() && value->get<uint64_t>() > INT64_MAX)) {
    throw_invalid(where, std::string("'") + key + "' must be an integer");
  }
  return value->get<int64_t>();
}

void set_rotary_fraction(ModelConfig& config, int64_t head_dim, double fraction,
                         const std::string& where) {
  if (!(fraction >= 0.0 && fraction <= 1.0)) {
    throw_invalid(where, "the rotary fraction of a head must lie between 0 and 1");
  }
  config.rotary_dim = static_cast<int64_t>(static_cast<double>(head_dim) * fraction);
}

std::span<const Family> family_table() { return kFamilies; }

const Family* find_family(const ordered_json& json) {
  if (const auto* names = find_value(json, {"architectures"}); names && names->is_array()) {
    for (const ordered_json& name : *names) {
      if (!name.is_string()) continue;
      for (const Family& family : kFamilies) {
        if (contains(family.architectures, name.get<std::string>())) return &family;
      }
    }
    // A named architecture that no row answers to is not to be guessed from model_type.
    if (!names->empty()) return nullptr;
  }
  if (const auto* type = find_value(json, {"model_type"}); type && type->is_string()) {
    for (const Family& family : kFamilies) {
      if (contains(family.model_types, type->get<std::string>())) return &family;
    }
  }
  return nullptr;
}

const Family* find_family_by_name(std::string_view name) {
  for (const Family& family : kFamilies) {
    if (family.name == name) return &family;
  }
  return nullptr;
}

ModelConfig read_config(const Family& family, const ordered_json& json, const std::string& where) {
  if (!json.is_object()) throw_invalid(where, "a JSON object expected");
  ModelConfig c;
  c.family = family.name;
  family.defaults(c);
  std::vector<std::string_view> seen;
  for (const ConfigKey& key : family.keys) {
    const std::string name(key.json);
    if (std::find(seen.begin(), seen.end(), key.field) != seen.end()) continue;
    const auto* value = find_value(json, {name.c_str()});
    if (value == nullptr) {
      // null stands for "derived", which is what 0 means; only sizes are ever null.
      continue;
    }
    set_field_json(c, *find_config_field(key.field), *value, where, name);
    seen.push_back(key.field);
  }
  const auto was_read = [&](std::string_view field) {
    return std::find(seen.begin(), seen.end(), field) != seen.end();
  };
  // Defaults that follow from sizes follow from the sizes that were read.
  if (!was_read("num_key_value_heads") && c.num_key_value_heads == 0) {
    c.num_key_value_heads = c.num_attention_heads;
  }
  if (c.head_dim == 0 && c.num_attention_heads > 0) {
    c.head_dim = c.hidden_size / c.num_attention_heads;
  }
  if (c.intermediate_size == 0) c.intermediate_size = 4 * c.hidden_size;
  if (const auto* tie = find_value(json, {"tie_word_embeddings"}); tie && tie->is_boolean()) {
    c.tie_word_embeddings = tie->get<bool>();
  }
  if (const auto* id = find_value(json, {"bos_token_id"}); id && id->is_number_integer()) {
    c.bos_token_id = id->get<int64_t>();
  }
  if (const auto* id = find_value(json, {"pad_token_id"}); id && id->is_number_integer()) {
    c.pad_token_id = id->get<int64_t>();
  }
  if (json.contains("bos_token_id") && json["bos_token_id"].is_null()) c.bos_token_id = -1;
  if (const auto* ids = find_value(json, {"eos_token_id"})) {
    c.eos_token_ids = read_ids(*ids, where, "eos_token_id");
  } else if (json.contains("eos_token_id")) {
    c.eos_token_ids.clear();
  }
  if (const auto* dtype = find_value(json, {"torch_dtype", "dtype"}); dtype && dtype->is_string()) {
    std::string name = dtype->get<std::string>();
    if (name.starts_with("torch.")) name = name.substr(6);
    if (const auto found = find_dtype(name)) c.dtype = *found;
  }
  if (c.position == PositionKind::kRotary) read_rope(family, c, json, where);
  if (family.read_rest != nullptr) family.read_rest(c, json, where);
  for (const FieldSetting& setting : family.settings) {
    set_field_text(c, *find_config_field(setting.field), std::string(setting.text), where);
  }
  if (c.position == PositionKind::kRotary && c.rotary_dim == 0) c.rotary_dim = c.head_dim;
  validate(c, where);
  if (c.head_dim * c.num_attention_heads != c.hidden_size && !was_read("head_dim") &&
      c.hidden_size % c.num_attention_heads != 0) {
    throw_invalid(where, "hidden_size " + std::to_string(c.hidden_size) +
                             " is not a multiple of num_attention_heads " +
                             std::to_string(c.num_attention_heads));
  }
  return c;
}

ordered_json write_config(const Family& family, const ModelConfig& c) {
  ordered_json json;
  json["architectures"] = {std::string(family.architectures.front())};
  json["model_type"] = std::string(family.model_types.front());
  std::vector<std::string_view> written;
  for (const ConfigKey& key : family.keys) {
    if (std::find(written.begin(), written.end(), key.field) != written.end()) continue;
    json[std::string(key.json)] = get_field_json(c, *find_config_field(key.field));
    written.push_back(key.field);
  }
  if (c.position == PositionKind::kRotary) {
    const ordered_json scaling = write_rope_scaling(c.rope_scaling);
    if (!scaling.is_null()) json["rope_scaling"] = scaling;
  }
  json["tie_word_embeddings"] = c.tie_word_embeddings;
  json["bos_token_id"] = nullptr;
  if (c.bos_token_id >= 0) json["bos_token_id"] = c.bos_token_id;
  json["eos_token_id"] = nullptr;
  if (c.eos_token_ids.size() == 1) json["eos_token_id"] = c.eos_token_ids[0];
  if (c.eos_token_ids.size() > 1) json["eos_token_id"] = c.eos_token_ids;
  if (c.pad_token_id >= 0) json["pad_token_id"] = c.pad_token_id;
  json["torch_dtype"] = std::string(dtype_info(c.dtype).torch);
  if (family.write_rest != nullptr) family.write_rest(c, json);
  return json;
}

void read_sliding_layers(ModelConfig& c, const ordered_json& json, const std::string& where,
                         int64_t first) {
  if (json.contains("sliding_window")) {
    c.sliding_window = 0;
    if (!json["sliding_window"].is_null()) {
      set_field_json(c, *find_config_field("sliding_window"), json["sliding_window"], where,
                     "sliding_window");
    }
  }
  c.first_sliding_layer = first;
  const auto* types = find_value(json, {"layer_types"});
  if (types == nullptr || !types->is_array()) return;
  int64_t full = 0;
  bool sliding = false;
  for (const ordered_json& type : *types) {
    const bool is_full = type == "full_attention";
    if (!is_full && type != "sliding_attention") {
      throw_invalid(where, "unknown entry in layer_types: " + printable(type.dump(), 60));
    }
    if (is_full && sliding) {
      throw_invalid(where, "layer_types mixes full and sliding attention in an unsupported order",
                    "llmctl knows full layers followed by sliding ones");
    }
    full += is_full ? 1 : 0;
    sliding = sliding || !is_full;
  }
  c.first_sliding_layer = full;
  if (!sliding) c.sliding_window = c.first_sliding_layer = 0;
}

}  // namespace llmctl::reshard
