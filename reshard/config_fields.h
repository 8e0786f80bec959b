// Every field of ModelConfig by name, so that config.json keys, config.ini keys and user-made
// family files are tables of names and one reader and one writer serve them all.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "reshard/model_config.h"

namespace llmctl::reshard {

/// A field: its name in llmctl's own files and where it lies.
struct ConfigField {
  std::string_view name;
  std::variant<int64_t ModelConfig::*, double ModelConfig::*, bool ModelConfig::*,
               NormKind ModelConfig::*, PositionKind ModelConfig::*, RotaryPairing ModelConfig::*,
               Activation ModelConfig::*, ResidualKind ModelConfig::*>
      member;
};

std::span<const ConfigField> config_field_table();
const ConfigField* find_config_field(std::string_view name);

/// Text of a field ("4096", "1e-05", "true", "gelu_tanh"), and back. `set` throws kInvalidInput
/// naming `where` and the field.
std::string get_field_text(const ModelConfig& config, const ConfigField& field);
void set_field_text(ModelConfig& config, const ConfigField& field, const std::string& text,
                    const std::string& where);
/// From a JSON value of the right kind (a number, a boolean, or a text for enumerations).
void set_field_json(ModelConfig& config, const ConfigField& field,
                    const nlohmann::ordered_json& value, const std::string& where,
                    const std::string& key);
nlohmann::ordered_json get_field_json(const ModelConfig& config, const ConfigField& field);

/// Activation names as Hugging Face configs spell them; nothing when unknown.
std::optional<Activation> find_activation(std::string_view hugging_face_name);
/// The spelling written to config.json.
std::string_view activation_name(Activation activation);

/// `rope_scaling` / `rope_parameters` of a Hugging Face config. Refuses unknown kinds.
RopeScaling read_rope_scaling(const nlohmann::ordered_json& value, const std::string& where);
nlohmann::ordered_json write_rope_scaling(const RopeScaling& scaling);

}  // namespace llmctl::reshard
