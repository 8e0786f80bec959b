// BLOOM, BLOOMZ.
#include "reshard/families/family.h"

namespace llmctl::reshard {
namespace {

constexpr std::string_view kArchitectures[] = {"BloomForCausalLM", "BloomModel"};
constexpr std::string_view kModelTypes[] = {"bloom"};

constexpr ConfigKey kKeys[] = {
    {"vocab_size", "vocab_size"},
    {"hidden_size", "hidden_size"},
    {"n_embed", "hidden_size"},
    {"n_layer", "num_hidden_layers"},
    {"num_hidden_layers", "num_hidden_layers"},
    {"n_head", "num_attention_heads"},
    {"num_attention_heads", "num_attention_heads"},
    {"layer_norm_epsilon", "norm_eps"},
    {"apply_residual_connection_post_layernorm", "residual_from_norm"},
};

constexpr TensorRule kTensors[] = {
    {"transformer.word_embeddings.weight", "embed : vocab hidden"},
    {"transformer.word_embeddings_layernorm.weight", "embed_norm : hidden"},
    {"transformer.word_embeddings_layernorm.bias", "embed_norm_b : hidden"},
    {"transformer.h.{l}.input_layernorm.weight", "norm1 : hidden"},
    {"transformer.h.{l}.input_layernorm.bias", "norm1b : hidden"},
    {"transformer.h.{l}.self_attention.query_key_value.weight", "(kv {q group | k | v} d) hidden"},
    {"transformer.h.{l}.self_attention.query_key_value.bias", "(kv {qb group | kb | vb} d)"},
    {"transformer.h.{l}.self_attention.dense.weight", "o : hidden (heads d)"},
    {"transformer.h.{l}.self_attention.dense.bias", "ob : hidden"},
    {"transformer.h.{l}.post_attention_layernorm.weight", "norm2 : hidden"},
    {"transformer.h.{l}.post_attention_layernorm.bias", "norm2b : hidden"},
    {"transformer.h.{l}.mlp.dense_h_to_4h.weight", "up : ffn hidden"},
    {"transformer.h.{l}.mlp.dense_h_to_4h.bias", "upb : ffn"},
    {"transformer.h.{l}.mlp.dense_4h_to_h.weight", "down : hidden ffn"},
    {"transformer.h.{l}.mlp.dense_4h_to_h.bias", "downb : hidden"},
    {"transformer.ln_f.weight", "final_norm : hidden"},
    {"transformer.ln_f.bias", "final_norm_b : hidden"},
    {"lm_head.weight", "head : vocab hidden"},
};

void set_defaults(ModelConfig& c) {
  c.vocab_size = 250880;
  c.hidden_size = 64;
  c.num_hidden_layers = 2;
  c.num_attention_heads = 8;
  c.position = PositionKind::kAlibi;
  c.embedding_norm = true;
  c.bos_token_id = 1;
  c.eos_token_ids = {2};
  c.pad_token_id = 3;
}

}  // namespace

constinit const Family kBloomFamily = {
    .name = "bloom",
    .architectures = kArchitectures,
    .model_types = kModelTypes,
    .defaults = set_defaults,
    .keys = kKeys,
    .read_rest = nullptr,
    .write_rest = nullptr,
    .prefix = "transformer.",
    .tensors = kTensors,
    .drops = {},
};

}  // namespace llmctl::reshard
