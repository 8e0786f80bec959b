// Names shared by LLaMA and the families that took them over.
#pragma once

#include "reshard/families/family.h"

namespace llmctl::reshard {

inline constexpr TensorRule kLlamaTensors[] = {
    {"model.embed_tokens.weight", "embed : vocab hidden"},
    {"model.layers.{l}.self_attn.q_proj.weight", "q : (heads d) hidden"},
    {"model.layers.{l}.self_attn.q_proj.bias", "qb : (heads d)"},
    {"model.layers.{l}.self_attn.k_proj.weight", "k : (kv d) hidden"},
    {"model.layers.{l}.self_attn.k_proj.bias", "kb : (kv d)"},
    {"model.layers.{l}.self_attn.v_proj.weight", "v : (kv d) hidden"},
    {"model.layers.{l}.self_attn.v_proj.bias", "vb : (kv d)"},
    {"model.layers.{l}.self_attn.o_proj.weight", "o : hidden (heads d)"},
    {"model.layers.{l}.self_attn.o_proj.bias", "ob : hidden"},
    {"model.layers.{l}.mlp.gate_proj.weight", "gate : ffn hidden"},
    {"model.layers.{l}.mlp.gate_proj.bias", "gateb : ffn"},
    {"model.layers.{l}.mlp.up_proj.weight", "up : ffn hidden"},
    {"model.layers.{l}.mlp.up_proj.bias", "upb : ffn"},
    {"model.layers.{l}.mlp.down_proj.weight", "down : hidden ffn"},
    {"model.layers.{l}.mlp.down_proj.bias", "downb : hidden"},
    {"model.layers.{l}.input_layernorm.weight", "norm1 : hidden"},
    {"model.layers.{l}.post_attention_layernorm.weight", "norm2 : hidden"},
    {"model.norm.weight", "final_norm : hidden"},
    {"lm_head.weight", "head : vocab hidden"},
};

inline constexpr DropRule kLlamaDrops[] = {
    {"model.layers.{l}.self_attn.rotary_emb.inv_freq", "rotary table buffer"},
    {"model.rotary_emb.inv_freq", "rotary table buffer"},
};

inline constexpr ConfigKey kLlamaKeys[] = {
    {"vocab_size", "vocab_size"},
    {"hidden_size", "hidden_size"},
    {"intermediate_size", "intermediate_size"},
    {"num_hidden_layers", "num_hidden_layers"},
    {"num_attention_heads", "num_attention_heads"},
    {"num_key_value_heads", "num_key_value_heads"},
    {"head_dim", "head_dim"},
    {"hidden_act", "activation"},
    {"max_position_embeddings", "max_position_embeddings"},
    {"rms_norm_eps", "norm_eps"},
    {"rope_theta", "rope_theta"},
    {"attention_bias", "qkv_bias"},
    {"mlp_bias", "mlp_bias"},
};

/// Rotary RMS-norm decoder with a gated MLP and no biases, of LLaMA-7B's sizes.
inline void set_llama_defaults(ModelConfig& c) {
  c.vocab_size = 32000;
  c.hidden_size = 4096;
  c.intermediate_size = 11008;
  c.num_hidden_layers = c.num_attention_heads = 32;
  c.max_position_embeddings = 2048;
  c.norm = NormKind::kRmsNorm;
  c.norm_eps = 1e-6;
  c.position = PositionKind::kRotary;
  c.activation = Activation::kSilu;
  c.gated_mlp = true;
  c.qkv_bias = c.o_bias = c.mlp_bias = false;
  c.tie_word_embeddings = false;
  c.bos_token_id = 1;
  c.eos_token_ids = {2};
}

}  // namespace llmctl::reshard
