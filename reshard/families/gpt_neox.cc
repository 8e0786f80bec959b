// GPT-NeoX, Pythia.
#include "reshard/families/family.h"

namespace llmctl::reshard {
namespace {

constexpr std::string_view kArchitectures[] = {"GPTNeoXForCausalLM", "GPTNeoXModel"};
constexpr std::string_view kModelTypes[] = {"gpt_neox"};

constexpr ConfigKey kKeys[] = {
    {"vocab_size", "vocab_size"},
    {"hidden_size", "hidden_size"},
    {"num_hidden_layers", "num_hidden_layers"},
    {"num_attention_heads", "num_attention_heads"},
    {"intermediate_size", "intermediate_size"},
    {"hidden_act", "activation"},
    {"rotary_emb_base", "rope_theta"},
    {"max_position_embeddings", "max_position_embeddings"},
    {"layer_norm_eps", "norm_eps"},
    {"attention_bias", "qkv_bias"},
};

constexpr TensorRule kTensors[] = {
    {"gpt_neox.embed_in.weight", "embed : vocab hidden"},
    {"gpt_neox.layers.{l}.input_layernorm.weight", "norm1 : hidden"},
    {"gpt_neox.layers.{l}.input_layernorm.bias", "norm1b : hidden"},
    {"gpt_neox.layers.{l}.post_attention_layernorm.weight", "norm2 : hidden"},
    {"gpt_neox.layers.{l}.post_attention_layernorm.bias", "norm2b : hidden"},
    {"gpt_neox.layers.{l}.attention.query_key_value.weight", "(kv {q group | k | v} d) hidden"},
    {"gpt_neox.layers.{l}.attention.query_key_value.bias", "(kv {qb group | kb | vb} d)"},
    {"gpt_neox.layers.{l}.attention.dense.weight", "o : hidden (heads d)"},
    {"gpt_neox.layers.{l}.attention.dense.bias", "ob : hidden"},
    {"gpt_neox.layers.{l}.mlp.dense_h_to_4h.weight", "up : ffn hidden"},
    {"gpt_neox.layers.{l}.mlp.dense_h_to_4h.bias", "upb : ffn"},
    {"gpt_neox.layers.{l}.mlp.dense_4h_to_h.weight", "down : hidden ffn"},
    {"gpt_neox.layers.{l}.mlp.dense_4h_to_h.bias", "downb : hidden"},
    {"gpt_neox.final_layer_norm.weight", "final_norm : hidden"},
    {"gpt_neox.final_layer_norm.bias", "final_norm_b : hidden"},
    {"embed_out.weight", "head : vocab hidden"},
    {"lm_head.weight", "head : vocab hidden"},
};

constexpr DropRule kDrops[] = {
    {"gpt_neox.layers.{l}.attention.bias", "causal mask buffer"},
    {"gpt_neox.layers.{l}.attention.masked_bias", "causal mask buffer"},
    {"gpt_neox.layers.{l}.attention.rotary_emb.inv_freq", "rotary table buffer"},
    {"gpt_neox.rotary_emb.inv_freq", "rotary table buffer"},
};

void set_defaults(ModelConfig& c) {
  c.vocab_size = 50432;
  c.hidden_size = 6144;
  c.num_hidden_layers = 44;
  c.num_attention_heads = 64;
  c.intermediate_size = 24576;
  c.max_position_embeddings = 2048;
  c.activation = Activation::kGelu;
  c.position = PositionKind::kRotary;
  c.residual = ResidualKind::kParallelTwoNorms;
  c.tie_word_embeddings = false;
  c.bos_token_id = 0;
  c.eos_token_ids = {2};
}

void read_rest(ModelConfig& c, const nlohmann::ordered_json& json, const std::string& where) {
  c.o_bias = c.qkv_bias;
  if (!read_flag(json, "use_parallel_residual", true, where)) {
    c.residual = ResidualKind::kSequential;
  }
  // rope_parameters, where newer files keep the fraction, is read for every family.
  if (c.rotary_dim == 0 && c.num_attention_heads > 0) {
    set_rotary_fraction(c, c.hidden_size / c.num_attention_heads,
                        read_number(json, "rotary_pct", 0.25, where), where);
  }
}

void write_rest(const ModelConfig& c, nlohmann::ordered_json& json) {
  json["use_parallel_residual"] = c.residual == ResidualKind::kParallelTwoNorms;
  json["rotary_pct"] = static_cast<double>(c.rotary_dim) / static_cast<double>(c.head_dim);
}

}  // namespace

constinit const Family kGptNeoXFamily = {
    .name = "gpt_neox",
    .architectures = kArchitectures,
    .model_types = kModelTypes,
    .defaults = set_defaults,
    .keys = kKeys,
    .read_rest = read_rest,
    .write_rest = write_rest,
    .prefix = "gpt_neox.",
    .tensors = kTensors,
    .drops = kDrops,
};

}  // namespace llmctl::reshard
