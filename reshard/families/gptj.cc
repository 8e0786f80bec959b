// GPT-J: attention and MLP side by side behind one norm, rotary pairs of neighbours.
#include "reshard/families/family.h"

namespace llmctl::reshard {
namespace {

constexpr std::string_view kArchitectures[] = {"GPTJForCausalLM", "GPTJModel"};
constexpr std::string_view kModelTypes[] = {"gptj"};

constexpr ConfigKey kKeys[] = {
    {"vocab_size", "vocab_size"},
    {"n_positions", "max_position_embeddings"},
    {"n_embd", "hidden_size"},
    {"n_layer", "num_hidden_layers"},
    {"n_head", "num_attention_heads"},
    {"rotary_dim", "rotary_dim"},
    {"n_inner", "intermediate_size"},
    {"activation_function", "activation"},
    {"layer_norm_epsilon", "norm_eps"},
    // The names that other families use, which transformers takes too.
    {"max_position_embeddings", "max_position_embeddings"},
    {"hidden_size", "hidden_size"},
    {"num_hidden_layers", "num_hidden_layers"},
    {"num_attention_heads", "num_attention_heads"},
};

constexpr TensorRule kTensors[] = {
    {"transformer.wte.weight", "embed : vocab hidden"},
    {"transformer.h.{l}.ln_1.weight", "norm1 : hidden"},
    {"transformer.h.{l}.ln_1.bias", "norm1b : hidden"},
    {"transformer.h.{l}.attn.k_proj.weight", "k : (kv d) hidden"},
    {"transformer.h.{l}.attn.v_proj.weight", "v : (kv d) hidden"},
    {"transformer.h.{l}.attn.q_proj.weight", "q : (heads d) hidden"},
    {"transformer.h.{l}.attn.out_proj.weight", "o : hidden (heads d)"},
    {"transformer.h.{l}.mlp.fc_in.weight", "up : ffn hidden"},
    {"transformer.h.{l}.mlp.fc_in.bias", "upb : ffn"},
    {"transformer.h.{l}.mlp.fc_out.weight", "down : hidden ffn"},
    {"transformer.h.{l}.mlp.fc_out.bias", "downb : hidden"},
    {"transformer.ln_f.weight", "final_norm : hidden"},
    {"transformer.ln_f.bias", "final_norm_b : hidden"},
    {"lm_head.weight", "head : vocab hidden"},
    {"lm_head.bias", "head_bias : vocab"},
};

constexpr DropRule kDrops[] = {
    {"transformer.h.{l}.attn.bias", "causal mask buffer"},
    {"transformer.h.{l}.attn.masked_bias", "causal mask buffer"},
    {"transformer.h.{l}.attn.embed_positions", "rotary table buffer"},
};

void set_defaults(ModelConfig& c) {
  c.vocab_size = 50400;
  c.max_position_embeddings = 2048;
  c.hidden_size = 4096;
  c.num_hidden_layers = 28;
  c.num_attention_heads = 16;
  c.rotary_dim = 64;
  c.position = PositionKind::kRotary;
  c.rotary_pairing = RotaryPairing::kInterleaved;
  c.residual = ResidualKind::kParallelOneNorm;
  c.qkv_bias = c.o_bias = false;
  c.head_bias = true;
  c.tie_word_embeddings = false;
  c.bos_token_id = 50256;
  c.eos_token_ids = {50256};
}

void read_rest(ModelConfig& c, const nlohmann::ordered_json& json, const std::string&) {
  if (json.contains("rotary_dim") && json["rotary_dim"].is_null()) c.rotary_dim = 0;
}

}  // namespace

constinit const Family kGptJFamily = {
    .name = "gptj",
    .architectures = kArchitectures,
    .model_types = kModelTypes,
    .defaults = set_defaults,
    .keys = kKeys,
    .read_rest = read_rest,
    .write_rest = nullptr,
    .prefix = "transformer.",
    .tensors = kTensors,
    .drops = kDrops,
};

}  // namespace llmctl::reshard
