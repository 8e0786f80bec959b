#include "reshard/export.h"

#include <nlohmann/json.hpp>

#include "formats/core/error.h"
#include "formats/json.h"
#include "kernels/quantized.h"
#include "reshard/config_fields.h"

namespace llmctl::reshard {
namespace {

using Json = nlohmann::ordered_json;

std::optional<DType> find_dtype_named(const std::string& name) {
  for (const DTypeInfo& info : dtype_table()) {
    if (info.name == name) return info.dtype;
  }
  return std::nullopt;
}

struct Document {
  Json json;
  std::string where;
};

Document parse(const formats::Checkpoint& checkpoint) {
  const std::string where = checkpoint.path.string() + ": " + formats::kExportConfig;
  return {formats::parse_json(checkpoint.texts.at(formats::kExportConfig), where), where};
}

}  // namespace

std::string write_export_config(const ModelConfig& config) {
  Json json;
  json["family"] = config.family;
  json["dtype"] = dtype_name(config.dtype);
  for (const ConfigField& field : config_field_table()) {
    json[std::string(field.name)] = get_field_json(config, field);
  }
  json["rope_scaling"] = write_rope_scaling(config.rope_scaling);
  json["eos_token_ids"] = config.eos_token_ids;
  return json.dump(2);
}

ModelConfig read_export_config(const formats::Checkpoint& checkpoint) {
  const auto [json, where] = parse(checkpoint);
  if (!json.is_object() || !json.contains("config") || !json["config"].is_object()) {
    throw_invalid(where, "'config' is missing", "the file is damaged; fetch it again");
  }
  const Json& values = json["config"];
  const auto get = [&, &where = where](const std::string& key) -> const Json& {
    const auto it = values.find(key);
    if (it == values.end()) {
      throw_invalid(where, "config: '" + key + "' is missing",
                    "the file is damaged, or of another version of llmctl");
    }
    return *it;
  };
  ModelConfig config;
  const Json &family = get("family"), &dtype = get("dtype");
  if (!family.is_string()) throw_invalid(where, "config: 'family' is no text");
  config.family = family.get<std::string>();
  const auto known = dtype.is_string() ? find_dtype_named(dtype.get<std::string>()) : std::nullopt;
  if (!known) throw_invalid(where, "config: 'dtype' is " + printable(dtype.dump(), 60));
  config.dtype = *known;
  for (const ConfigField& field : config_field_table()) {
    const std::string name(field.name);
    set_field_json(config, field, get(name), where, "config: " + name);
  }
  config.rope_scaling = read_rope_scaling(get("rope_scaling"), where);
  const Json& stops = get("eos_token_ids");
  if (!stops.is_array() || stops.size() > 4096) {
    throw_invalid(where, "config: 'eos_token_ids' is no list");
  }
  for (const Json& id : stops) {
    config.eos_token_ids.push_back(formats::get_size(id, where, "eos_token_ids"));
  }
  for (const auto& [key, value] : values.items()) {
    if (key == "family" || key == "dtype" || key == "rope_scaling" || key == "eos_token_ids") {
      continue;
    }
    if (find_config_field(key) == nullptr) {
      throw_invalid(where, "config: unknown field '" + printable(key) + "'",
                    "use the llmctl that wrote it, or export the model again");
    }
  }
  validate(config, where);
  return config;
}

formats::MatrixLayout matrix_layout_of(const formats::Checkpoint& checkpoint) {
  const auto [json, where] = parse(checkpoint);
  const std::string name = json.contains("matrix_layout") && json["matrix_layout"].is_string()
                               ? json["matrix_layout"].get<std::string>()
                               : std::string();
  return formats::read_matrix_layout(name, where);
}

Shape panel_shape(DType dtype, const Shape& matrix) {
  const int64_t group = kernels::panel_group(dtype);
  return {(matrix[0] + kernels::kPanelRows - 1) / kernels::kPanelRows,
          (matrix[1] + group - 1) / group, kernels::kPanelRows, group};
}

Shape quantized_shape(const kernels::Quantization& q, const Shape& matrix) {
  return {(matrix[0] + kernels::kPanelRows - 1) / kernels::kPanelRows,
          kernels::quantized_blocks(q, matrix[1]),
          static_cast<int64_t>(kernels::quantized_block_bytes(q, matrix[1]))};
}

std::optional<DType> vector_dtype_of(const formats::Checkpoint& checkpoint) {
  if (checkpoint.format != "export") return std::nullopt;
  const auto [json, where] = parse(checkpoint);
  if (!json.contains("vector_dtype") || !json["vector_dtype"].is_string()) return std::nullopt;
  return find_dtype_named(json["vector_dtype"].get<std::string>());
}

}  // namespace llmctl::reshard
