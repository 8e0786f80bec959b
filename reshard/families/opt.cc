// OPT, Galactica. 350m has a narrow embedding with two projections, and norms after the residual.
#include "reshard/families/family.h"

namespace llmctl::reshard {
namespace {

constexpr std::string_view kArchitectures[] = {"OPTForCausalLM", "OPTModel"};
constexpr std::string_view kModelTypes[] = {"opt"};

constexpr ConfigKey kKeys[] = {
    {"vocab_size", "vocab_size"},
    {"hidden_size", "hidden_size"},
    {"num_hidden_layers", "num_hidden_layers"},
    {"ffn_dim", "intermediate_size"},
    {"max_position_embeddings", "max_position_embeddings"},
    {"num_attention_heads", "num_attention_heads"},
    {"activation_function", "activation"},
    {"do_layer_norm_before", "pre_norm"},
    {"word_embed_proj_dim", "word_embed_proj_dim"},
    {"enable_bias", "mlp_bias"},
    {"layer_norm_elementwise_affine", "norm_affine"},
};

constexpr TensorRule kTensors[] = {
    {"model.decoder.embed_tokens.weight", "embed : vocab hidden"},
    {"model.decoder.embed_tokens.weight", "embed_narrow : vocab width"},
    {"model.decoder.embed_positions.weight", "({pos_lead lead | pos position}) hidden"},
    {"model.decoder.project_in.weight", "project_in : hidden width"},
    {"model.decoder.layers.{l}.self_attn.k_proj.weight", "k : (kv d) hidden"},
    {"model.decoder.layers.{l}.self_attn.k_proj.bias", "kb : (kv d)"},
    {"model.decoder.layers.{l}.self_attn.v_proj.weight", "v : (kv d) hidden"},
    {"model.decoder.layers.{l}.self_attn.v_proj.bias", "vb : (kv d)"},
    {"model.decoder.layers.{l}.self_attn.q_proj.weight", "q : (heads d) hidden"},
    {"model.decoder.layers.{l}.self_attn.q_proj.bias", "qb : (heads d)"},
    {"model.decoder.layers.{l}.self_attn.out_proj.weight", "o : hidden (heads d)"},
    {"model.decoder.layers.{l}.self_attn.out_proj.bias", "ob : hidden"},
    {"model.decoder.layers.{l}.self_attn_layer_norm.weight", "norm1 : hidden"},
    {"model.decoder.layers.{l}.self_attn_layer_norm.bias", "norm1b : hidden"},
    {"model.decoder.layers.{l}.fc1.weight", "up : ffn hidden"},
    {"model.decoder.layers.{l}.fc1.bias", "upb : ffn"},
    {"model.decoder.layers.{l}.fc2.weight", "down : hidden ffn"},
    {"model.decoder.layers.{l}.fc2.bias", "downb : hidden"},
    {"model.decoder.layers.{l}.final_layer_norm.weight", "norm2 : hidden"},
    {"model.decoder.layers.{l}.final_layer_norm.bias", "norm2b : hidden"},
    {"model.decoder.project_out.weight", "project_out : width hidden"},
    {"model.decoder.final_layer_norm.weight", "final_norm : hidden"},
    {"model.decoder.final_layer_norm.bias", "final_norm_b : hidden"},
    {"lm_head.weight", "head : vocab hidden"},
    {"lm_head.weight", "head_narrow : vocab width"},
};

void set_defaults(ModelConfig& c) {
  c.vocab_size = 50272;
  c.hidden_size = 768;
  c.num_hidden_layers = c.num_attention_heads = 12;
  c.intermediate_size = 3072;
  c.max_position_embeddings = 2048;
  c.activation = Activation::kRelu;
  c.pad_token_id = 1;
  c.bos_token_id = 2;
  c.eos_token_ids = {2};
}

void read_rest(ModelConfig& c, const nlohmann::ordered_json& json, const std::string& where) {
  c.qkv_bias = c.o_bias = c.mlp_bias;
  c.final_norm = c.pre_norm && !read_flag(json, "_remove_final_layer_norm", false, where);
  if (c.word_embed_proj_dim == c.hidden_size) c.word_embed_proj_dim = 0;
}

void write_rest(const ModelConfig& c, nlohmann::ordered_json& json) {
  json["word_embed_proj_dim"] = c.embed_dim();
  json["_remove_final_layer_norm"] = c.pre_norm && !c.final_norm;
}

}  // namespace

constinit const Family kOptFamily = {
    .name = "opt",
    .architectures = kArchitectures,
    .model_types = kModelTypes,
    .defaults = set_defaults,
    .keys = kKeys,
    .read_rest = read_rest,
    .write_rest = write_rest,
    .prefix = "model.",
    .tensors = kTensors,
    .drops = {},
};

}  // namespace llmctl::reshard
