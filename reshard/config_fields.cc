#include "reshard/config_fields.h"

#include <array>
#include <charconv>
#include <cmath>

#include "formats/core/error.h"

namespace llmctl::reshard {
namespace {

using C = ModelConfig;
using nlohmann::ordered_json;

constexpr std::array kFields = {
    ConfigField{"vocab_size", &C::vocab_size},
    ConfigField{"hidden_size", &C::hidden_size},
    ConfigField{"intermediate_size", &C::intermediate_size},
    ConfigField{"num_hidden_layers", &C::num_hidden_layers},
    ConfigField{"num_attention_heads", &C::num_attention_heads},
    ConfigField{"num_key_value_heads", &C::num_key_value_heads},
    ConfigField{"head_dim", &C::head_dim},
    ConfigField{"max_position_embeddings", &C::max_position_embeddings},
    ConfigField{"word_embed_proj_dim", &C::word_embed_proj_dim},
    ConfigField{"norm", &C::norm},
    ConfigField{"norm_eps", &C::norm_eps},
    ConfigField{"pre_norm", &C::pre_norm},
    ConfigField{"residual_from_norm", &C::residual_from_norm},
    ConfigField{"embedding_norm", &C::embedding_norm},
    ConfigField{"final_norm", &C::final_norm},
    ConfigField{"residual", &C::residual},
    ConfigField{"position", &C::position},
    ConfigField{"rotary_dim", &C::rotary_dim},
    ConfigField{"rotary_pairing", &C::rotary_pairing},
    ConfigField{"rope_theta", &C::rope_theta},
    ConfigField{"activation", &C::activation},
    ConfigField{"gated_mlp", &C::gated_mlp},
    ConfigField{"localized_filtering", &C::localized_filtering},
    ConfigField{"lf_groups", &C::lf_groups},
    ConfigField{"rope_in_bf16", &C::rope_in_bf16},
    ConfigField{"true_vocab_size", &C::true_vocab_size},
    ConfigField{"attention_scale", &C::attention_scale},
    ConfigField{"scale_attn_by_inverse_layer_idx", &C::scale_attn_by_inverse_layer_idx},
    ConfigField{"sliding_window", &C::sliding_window},
    ConfigField{"first_sliding_layer", &C::first_sliding_layer},
    ConfigField{"qkv_bias", &C::qkv_bias},
    ConfigField{"o_bias", &C::o_bias},
    ConfigField{"mlp_bias", &C::mlp_bias},
    ConfigField{"head_bias", &C::head_bias},
    ConfigField{"norm_affine", &C::norm_affine},
    ConfigField{"tie_word_embeddings", &C::tie_word_embeddings},
    ConfigField{"bos_token_id", &C::bos_token_id},
    ConfigField{"pad_token_id", &C::pad_token_id},
};

template <typename E>
struct EnumName {
  E value;
  std::string_view name;
};

constexpr std::array kNorms = {EnumName{NormKind::kLayerNorm, "layer_norm"},
                               EnumName{NormKind::kRmsNorm, "rms_norm"}};
constexpr std::array kPositions = {
    EnumName{PositionKind::kNone, "none"}, EnumName{PositionKind::kLearned, "learned"},
    EnumName{PositionKind::kRotary, "rotary"}, EnumName{PositionKind::kAlibi, "alibi"}};
constexpr std::array kPairings = {EnumName{RotaryPairing::kHalf, "half"},
                                  EnumName{RotaryPairing::kInterleaved, "interleaved"}};
constexpr std::array kActivations = {
    EnumName{Activation::kRelu, "relu"}, EnumName{Activation::kGelu, "gelu"},
    EnumName{Activation::kGeluTanh, "gelu_tanh"}, EnumName{Activation::kSilu, "silu"},
    EnumName{Activation::kQuickGelu, "quick_gelu"}};
constexpr std::array kResiduals = {EnumName{ResidualKind::kSequential, "sequential"},
                                   EnumName{ResidualKind::kParallelOneNorm, "parallel_one_norm"},
                                   EnumName{ResidualKind::kParallelTwoNorms, "parallel_two_norms"}};

constexpr const auto& names_of(NormKind) { return kNorms; }
constexpr const auto& names_of(PositionKind) { return kPositions; }
constexpr const auto& names_of(RotaryPairing) { return kPairings; }
constexpr const auto& names_of(Activation) { return kActivations; }
constexpr const auto& names_of(ResidualKind) { return kResiduals; }

[[noreturn]] void bad_value(const std::string& where, std::string_view key,
                            const std::string& value, const std::string& expected) {
  throw_invalid(where,
                "'" + std::string(key) + "' must be " + expected + ", not " + printable(value, 60));
}

template <typename T>
void assign_text(T& target, const std::string& text, const std::string& where,
                 std::string_view key) {
  if constexpr (std::is_same_v<T, bool>) {
    if (text != "true" && text != "false") bad_value(where, key, text, "true or false");
    target = text == "true";
  } else if constexpr (std::is_enum_v<T>) {
    for (const auto& row : names_of(T{})) {
      if (row.name == text) {
        target = row.value;
        return;
      }
    }
    bad_value(where, key, text, "a known name");
  } else {
    T value{};
    const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
    if (result.ec != std::errc() || result.ptr != text.data() + text.size()) {
      bad_value(where, key, text, "a number");
    }
    if constexpr (std::is_same_v<T, double>) {
      if (!std::isfinite(value)) bad_value(where, key, text, "finite");
    }
    target = value;
  }
}

}  // namespace

std::span<const ConfigField> config_field_table() { return kFields; }

const ConfigField* find_config_field(std::string_view name) {
  for (const ConfigField& field : kFields) {
    if (field.name == name) return &field;
  }
  return nullptr;
}

std::string get_field_text(const ModelConfig& config, const ConfigField& field) {
  return std::visit(
      [&](auto member) -> std::string {
        const auto value = config.*member;
        using T = std::remove_const_t<decltype(value)>;
        if constexpr (std::is_same_v<T, bool>) {
          return value ? "true" : "false";
        } else if constexpr (std::is_enum_v<T>) {
          for (const auto& row : names_of(value)) {
            if (row.value == value) return std::string(row.name);
          }
          throw Error(ErrorCode::kInternal, "enumerator without a name", std::string(field.name));
        } else {
          char text[32];
          const auto result = std::to_chars(text, text + sizeof text, value);
          return std::string(text, result.ptr);
        }
      },
      field.member);
}

void set_field_text(ModelConfig& config, const ConfigField& field, const std::string& text,
                    const std::string& where) {
  std::visit([&](auto member) { assign_text(config.*member, text, where, field.name); },
             field.member);
}

void set_field_json(ModelConfig& config, const ConfigField& field, const ordered_json& value,
                    const std::string& where, const std::string& key) {
  std::visit(
      [&](auto member) {
        auto& target = config.*member;
        using T = std::remove_reference_t<decltype(target)>;
        if constexpr (std::is_same_v<T, bool>) {
          if (!value.is_boolean()) bad_value(where, key, value.dump(), "true or false");
          target = value.get<bool>();
        } else if constexpr (std::is_same_v<T, Activation>) {
          const auto found =
              value.is_string() ? find_activation(value.get<std::string>()) : std::nullopt;
          if (!found) {
            bad_value(where, key, value.dump(),
                      "relu, gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, silu or quick_gelu");
          }
          target = *found;
        } else if constexpr (std::is_enum_v<T>) {
          if (!value.is_string()) bad_value(where, key, value.dump(), "a name");
          assign_text(target, value.get<std::string>(), where, key);
        } else if constexpr (std::is_same_v<T, double>) {
          if (!value.is_number() || !std::isfinite(value.get<double>())) {
            bad_value(where, key, value.dump(), "a finite number");
          }
          target = value.get<double>();
        } else {
          if (!value.is_number_integer() ||
              (value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX)) {
            bad_value(where, key, value.dump(), "an integer");
          }
          target = value.get<int64_t>();
        }
      },
      field.member);
}

ordered_json get_field_json(const ModelConfig& config, const ConfigField& field) {
  return std::visit(
      [&](auto member) -> ordered_json {
        const auto value = config.*member;
        using T = std::remove_const_t<decltype(value)>;
        if constexpr (std::is_same_v<T, Activation>) {
          return std::string(activation_name(value));
        } else if constexpr (std::is_enum_v<T>) {
          return get_field_text(config, field);
        } else {
          return value;
        }
      },
      field.member);
}

std::optional<Activation> find_activation(std::string_view name) {
  constexpr std::array kNames = {EnumName{Activation::kRelu, "relu"},
                                 EnumName{Activation::kSilu, "silu"},
                                 EnumName{Activation::kSilu, "swish"},
                                 EnumName{Activation::kGelu, "gelu"},
                                 EnumName{Activation::kGeluTanh, "gelu_new"},
                                 EnumName{Activation::kGeluTanh, "gelu_fast"},
                                 EnumName{Activation::kGeluTanh, "gelu_pytorch_tanh"},
                                 EnumName{Activation::kGeluTanh, "gelu_python_tanh"},
                                 EnumName{Activation::kQuickGelu, "quick_gelu"}};
  for (const auto& row : kNames) {
    if (row.name == name) return row.value;
  }
  return std::nullopt;
}

std::string_view activation_name(Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return "relu";
    case Activation::kGelu:
      return "gelu";
    case Activation::kGeluTanh:
      return "gelu_new";
    case Activation::kSilu:
      return "silu";
    case Activation::kQuickGelu:
      return "quick_gelu";
  }
  return "";
}

namespace {

struct RopeKey {
  std::string_view key;
  double RopeScaling::*member;
};
constexpr std::array kRopeKeys = {
    RopeKey{"factor", &RopeScaling::factor},
    RopeKey{"low_freq_factor", &RopeScaling::low_freq_factor},
    RopeKey{"high_freq_factor", &RopeScaling::high_freq_factor},
    RopeKey{"beta_fast", &RopeScaling::beta_fast},
    RopeKey{"beta_slow", &RopeScaling::beta_slow},
    RopeKey{"attention_factor", &RopeScaling::attention_factor},
    RopeKey{"mscale", &RopeScaling::mscale},
    RopeKey{"mscale_all_dim", &RopeScaling::mscale_all_dim},
};

std::vector<double> read_numbers(const ordered_json& value, const std::string& where,
                                 const std::string& key) {
  if (!value.is_array() || value.size() > 4096) bad_value(where, key, value.dump(), "a list");
  std::vector<double> numbers;
  for (const ordered_json& item : value) {
    if (!item.is_number()) bad_value(where, key, item.dump(), "a list of numbers");
    numbers.push_back(item.get<double>());
  }
  return numbers;
}

}  // namespace

RopeScaling read_rope_scaling(const ordered_json& value, const std::string& where) {
  RopeScaling scaling;
  if (value.is_null()) return scaling;
  if (!value.is_object()) bad_value(where, "rope_scaling", value.dump(), "an object or null");
  for (const char* key : {"rope_type", "type"}) {
    if (value.contains(key) && value[key].is_string()) {
      scaling.kind = value[key].get<std::string>();
      break;
    }
  }
  if (scaling.kind == "su") scaling.kind = "longrope";
  constexpr std::array kKinds = {"default", "linear", "dynamic", "yarn", "llama3", "longrope"};
  if (std::find(kKinds.begin(), kKinds.end(), scaling.kind) == kKinds.end()) {
    throw_invalid(where, "unknown rope scaling '" + printable(scaling.kind) + "'",
                  "llmctl knows default, linear, dynamic, yarn, llama3 and longrope");
  }
  for (const RopeKey& row : kRopeKeys) {
    const std::string key(row.key);
    if (!value.contains(key) || value[key].is_null()) continue;
    if (!value[key].is_number()) bad_value(where, key, value[key].dump(), "a number");
    scaling.*row.member = value[key].get<double>();
  }
  if (value.contains("truncate")) scaling.truncate = value["truncate"] == true;
  if (const auto it = value.find("original_max_position_embeddings");
      it != value.end() && it->is_number()) {
    const double rows = it->get<double>();
    if (!(rows >= 0.0 && rows <= 0x1p53)) bad_value(where, it.key(), it->dump(), "a row count");
    scaling.original_max_position_embeddings = static_cast<int64_t>(rows);
  }
  if (value.contains("short_factor")) {
    scaling.short_factor = read_numbers(value["short_factor"], where, "short_factor");
  }
  if (value.contains("long_factor")) {
    scaling.long_factor = read_numbers(value["long_factor"], where, "long_factor");
  }
  if (scaling.kind == "llama3" && scaling.original_max_position_embeddings <= 0) {
    throw_invalid(where, "rope scaling llama3 needs 'original_max_position_embeddings'");
  }
  if (scaling.kind != "default" && scaling.kind != "longrope" && scaling.factor <= 0) {
    throw_invalid(where, "rope scaling '" + scaling.kind + "' needs a positive 'factor'");
  }
  if (scaling.kind == "longrope" && (scaling.short_factor.empty() || scaling.long_factor.empty())) {
    throw_invalid(where, "rope scaling longrope needs 'short_factor' and 'long_factor'");
  }
  return scaling;
}

ordered_json write_rope_scaling(const RopeScaling& scaling) {
  if (scaling.kind == "default") return nullptr;
  ordered_json value;
  value["rope_type"] = scaling.kind;
  const RopeScaling defaults;
  for (const RopeKey& row : kRopeKeys) {
    if (row.key == "factor" || scaling.*row.member != defaults.*row.member ||
        (scaling.kind == "llama3" && row.key.ends_with("freq_factor"))) {
      value[std::string(row.key)] = scaling.*row.member;
    }
  }
  if (!scaling.truncate) value["truncate"] = false;
  if (scaling.original_max_position_embeddings > 0) {
    value["original_max_position_embeddings"] = scaling.original_max_position_embeddings;
  }
  if (!scaling.short_factor.empty()) value["short_factor"] = scaling.short_factor;
  if (!scaling.long_factor.empty()) value["long_factor"] = scaling.long_factor;
  return value;
}

}  // namespace llmctl::reshard
