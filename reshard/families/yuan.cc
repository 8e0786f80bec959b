// Yuan 2.0 (IEIT): LLaMA's shape with localized filtering in front of queries and keys.
//
// Two things in the published names mislead: q_proj and k_proj are the upper and lower half of one
// tensor that holds query and key head by head, and silu is applied to up_proj, not to gate_proj.
#include "formats/core/error.h"
#include "reshard/families/family.h"

namespace llmctl::reshard {
namespace {

constexpr std::string_view kArchitectures[] = {"YuanForCausalLM"};
constexpr std::string_view kModelTypes[] = {"yuan"};

constexpr ConfigKey kKeys[] = {
    {"vocab_size", "vocab_size"},
    {"hidden_size", "hidden_size"},
    {"intermediate_size", "intermediate_size"},
    {"num_hidden_layers", "num_hidden_layers"},
    {"num_attention_heads", "num_attention_heads"},
    {"hidden_act", "activation"},
    {"max_position_embeddings", "max_position_embeddings"},
    {"model_max_length", "max_position_embeddings"},
    {"rms_norm_eps", "norm_eps"},
    {"rope_theta", "rope_theta"},
    {"lf_conv2d_group", "lf_groups"},
};

constexpr TensorRule kTensors[] = {
    {"model.embed_tokens.weight", "embed : vocab hidden"},
    {"model.layers.{l}.self_attn.q_proj.weight", "(kv[0/2] {q group | k} d) hidden"},
    {"model.layers.{l}.self_attn.k_proj.weight", "(kv[1/2] {q group | k} d) hidden"},
    {"model.layers.{l}.self_attn.v_proj.weight", "v : (kv d) hidden"},
    {"model.layers.{l}.self_attn.o_proj.weight", "o : hidden (heads d)"},
    {"model.layers.{l}.self_attn.lf_gate.conv1.weight", "conv1 : filter conv_in tap one"},
    {"model.layers.{l}.self_attn.lf_gate.conv1.bias", "conv1b : filter"},
    {"model.layers.{l}.self_attn.lf_gate.conv2.weight", "conv2 : hidden conv_mid tap one"},
    {"model.layers.{l}.self_attn.lf_gate.conv2.bias", "conv2b : hidden"},
    {"model.layers.{l}.self_attn.lf_gate.output_layernorm.weight", "lf_norm : hidden"},
    {"model.layers.{l}.mlp.up_proj.weight", "gate : ffn hidden"},
    {"model.layers.{l}.mlp.gate_proj.weight", "up : ffn hidden"},
    {"model.layers.{l}.mlp.down_proj.weight", "down : hidden ffn"},
    {"model.layers.{l}.input_layernorm.weight", "norm1 : hidden"},
    {"model.layers.{l}.post_attention_layernorm.weight", "norm2 : hidden"},
    {"model.norm.weight", "final_norm : hidden"},
    {"lm_head.weight", "head : vocab hidden"},
};

constexpr DropRule kDrops[] = {
    {"model.layers.{l}.self_attn.rotary_emb.inv_freq", "rotary table buffer"},
};

constexpr int64_t kEod = 77185, kSep = 77187;

/// The sizes of the 2.1B model, as YuanConfig has them.
void set_defaults(ModelConfig& c) {
  c.vocab_size = 135040;
  c.hidden_size = 2048;
  c.intermediate_size = 8192;
  c.num_hidden_layers = 24;
  c.num_attention_heads = 32;
  c.max_position_embeddings = 8192;
  c.norm = NormKind::kRmsNorm;
  c.norm_eps = 1e-6;
  c.position = PositionKind::kRotary;
  c.activation = Activation::kSilu;
  c.gated_mlp = true;
  c.localized_filtering = true;
  c.rope_in_bf16 = true;
  c.qkv_bias = c.o_bias = c.mlp_bias = false;
  c.tie_word_embeddings = true;
  c.bos_token_id = c.pad_token_id = kEod;
  c.eos_token_ids = {kEod};
}

/// The model was trained with a rotary table that its BF16 wrapper had rounded, and its own code
/// rounds it whenever it is loaded as BF16; a model of another dtype was made without that.
bool read_rope_in_bf16(const ModelConfig& c, const nlohmann::ordered_json& json,
                       const std::string& where) {
  const auto precision = json.find("rope_precision");
  if (precision != json.end() && !precision->is_null()) {
    if (*precision != "megatron_bf16" && *precision != "fp32") {
      throw_invalid(where, "'rope_precision' must be megatron_bf16 or fp32");
    }
    return *precision == "megatron_bf16";
  }
  const bool has_dtype = json.contains("torch_dtype") || json.contains("dtype");
  return !has_dtype || c.dtype == DType::BF16;
}

void read_rest(ModelConfig& c, const nlohmann::ordered_json& json, const std::string& where) {
  if (read_flag(json, "use_shareqk", false, where)) {
    throw_invalid(
        where, "'use_shareqk' is true: queries and keys of one projection are not supported",
        "no published Yuan 2.0 model has them; llmctl reads those with q_proj and k_proj");
  }
  if (read_flag(json, "use_yarn", false, where)) {
    throw_invalid(where, "'use_yarn' is true: Yuan's own rotary scaling is not supported",
                  "set it to false to use the model within the positions it was trained on");
  }
  const int64_t kv = read_integer(json, "num_key_value_heads", c.num_attention_heads, where);
  if (kv != c.num_attention_heads) {
    throw_invalid(where, "num_key_value_heads is " + std::to_string(kv) + ", but Yuan 2.0 has " +
                             "as many as num_attention_heads, " +
                             std::to_string(c.num_attention_heads));
  }
  if (c.num_attention_heads % 2 != 0) {
    throw_invalid(where, "num_attention_heads is " + std::to_string(c.num_attention_heads) +
                             ": q_proj and k_proj hold one half of the heads each, so the number " +
                             "must be even");
  }
  if (json.find("eos_token_id") == json.end()) {
    c.eos_token_ids = {read_integer(json, "eod_token", kEod, where)};
  }
  c.true_vocab_size = read_integer(json, "true_vocab_size", 0, where);
  c.rope_in_bf16 = read_rope_in_bf16(c, json, where);
}

/// The published model file reads these keys without a default.
void write_rest(const ModelConfig& c, nlohmann::ordered_json& json) {
  if (c.true_vocab_size > 0) json["true_vocab_size"] = c.true_vocab_size;
  json["model_max_length"] = c.max_position_embeddings;
  json["eod_token"] = c.eos_token_ids.empty() ? kEod : c.eos_token_ids.front();
  json["sep_token"] = kSep;
  json["causal_mask"] = true;
  json["use_flash_attention"] = false;
  json["use_shareqk"] = false;
  json["reset_attention_mask"] = false;
  json["reset_position_ids"] = false;
  json["use_loss_mask"] = false;
  json["use_cache"] = true;
  json["rope_precision"] = c.rope_in_bf16 ? "megatron_bf16" : "fp32";
}

}  // namespace

constinit const Family kYuanFamily = {
    .name = "yuan",
    .architectures = kArchitectures,
    .model_types = kModelTypes,
    .defaults = set_defaults,
    .keys = kKeys,
    .read_rest = read_rest,
    .write_rest = write_rest,
    .prefix = "model.",
    .tensors = kTensors,
    .drops = kDrops,
};

}  // namespace llmctl::reshard
