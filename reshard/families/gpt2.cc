// GPT-2, GPT-3-style models, Cerebras-GPT.
#include "reshard/families/family.h"

namespace llmctl::reshard {
namespace {

constexpr std::string_view kArchitectures[] = {"GPT2LMHeadModel", "GPT2Model"};
constexpr std::string_view kModelTypes[] = {"gpt2"};

constexpr ConfigKey kKeys[] = {
    {"vocab_size", "vocab_size"},
    {"n_positions", "max_position_embeddings"},
    {"n_embd", "hidden_size"},
    {"n_layer", "num_hidden_layers"},
    {"n_head", "num_attention_heads"},
    {"n_inner", "intermediate_size"},
    {"activation_function", "activation"},
    {"layer_norm_epsilon", "norm_eps"},
    {"scale_attn_by_inverse_layer_idx", "scale_attn_by_inverse_layer_idx"},
    // The names that other families use, which transformers takes too.
    {"max_position_embeddings", "max_position_embeddings"},
    {"hidden_size", "hidden_size"},
    {"num_hidden_layers", "num_hidden_layers"},
    {"num_attention_heads", "num_attention_heads"},
};

constexpr TensorRule kTensors[] = {
    {"transformer.wte.weight", "embed : vocab hidden"},
    {"transformer.wpe.weight", "pos : position hidden"},
    {"transformer.h.{l}.ln_1.weight", "norm1 : hidden"},
    {"transformer.h.{l}.ln_1.bias", "norm1b : hidden"},
    {"transformer.h.{l}.attn.c_attn.weight", "hidden ({q heads d | k kv d | v kv d})"},
    {"transformer.h.{l}.attn.c_attn.bias", "({qb heads d | kb kv d | vb kv d})"},
    {"transformer.h.{l}.attn.c_proj.weight", "o : (heads d) hidden"},
    {"transformer.h.{l}.attn.c_proj.bias", "ob : hidden"},
    {"transformer.h.{l}.ln_2.weight", "norm2 : hidden"},
    {"transformer.h.{l}.ln_2.bias", "norm2b : hidden"},
    {"transformer.h.{l}.mlp.c_fc.weight", "up : hidden ffn"},
    {"transformer.h.{l}.mlp.c_fc.bias", "upb : ffn"},
    {"transformer.h.{l}.mlp.c_proj.weight", "down : ffn hidden"},
    {"transformer.h.{l}.mlp.c_proj.bias", "downb : hidden"},
    {"transformer.ln_f.weight", "final_norm : hidden"},
    {"transformer.ln_f.bias", "final_norm_b : hidden"},
    {"lm_head.weight", "head : vocab hidden"},
};

constexpr DropRule kDrops[] = {
    {"transformer.h.{l}.attn.bias", "causal mask buffer"},
    {"transformer.h.{l}.attn.masked_bias", "causal mask buffer"},
};

void set_defaults(ModelConfig& c) {
  c.vocab_size = 50257;
  c.max_position_embeddings = 1024;
  c.hidden_size = 768;
  c.num_hidden_layers = c.num_attention_heads = 12;
  c.bos_token_id = 50256;
  c.eos_token_ids = {50256};
}

void read_rest(ModelConfig& c, const nlohmann::ordered_json& json, const std::string& where) {
  if (!read_flag(json, "scale_attn_weights", true, where)) c.attention_scale = 1.0;
}

void write_rest(const ModelConfig& c, nlohmann::ordered_json& json) {
  if (c.attention_scale == 1.0) json["scale_attn_weights"] = false;
}

}  // namespace

constinit const Family kGpt2Family = {
    .name = "gpt2",
    .architectures = kArchitectures,
    .model_types = kModelTypes,
    .defaults = set_defaults,
    .keys = kKeys,
    .read_rest = read_rest,
    .write_rest = write_rest,
    .prefix = "transformer.",
    .tensors = kTensors,
    .drops = kDrops,
};

}  // namespace llmctl::reshard
