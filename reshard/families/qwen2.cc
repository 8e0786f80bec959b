// Qwen2, Qwen2.5: LLaMA with biases on q, k and v.
#include "reshard/families/llama_tensors.h"

namespace llmctl::reshard {
namespace {

constexpr std::string_view kArchitectures[] = {"Qwen2ForCausalLM", "Qwen2Model"};
constexpr std::string_view kModelTypes[] = {"qwen2"};

constexpr ConfigKey kKeys[] = {
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
};

void set_defaults(ModelConfig& c) {
  set_llama_defaults(c);
  c.vocab_size = 151936;
  c.intermediate_size = 22016;
  c.max_position_embeddings = 32768;
  c.qkv_bias = true;
  c.bos_token_id = -1;
  c.eos_token_ids = {};
}

/// A layer slides iff use_sliding_window and its index is at least max_window_layers, unless
/// layer_types lists the layers one by one.
void read_rest(ModelConfig& c, const nlohmann::ordered_json& json, const std::string& where) {
  read_sliding_layers(c, json, where, read_integer(json, "max_window_layers", 28, where));
  if (!read_flag(json, "use_sliding_window", false, where)) {
    c.sliding_window = c.first_sliding_layer = 0;
  }
}

void write_rest(const ModelConfig& c, nlohmann::ordered_json& json) {
  json["use_sliding_window"] = c.sliding_window > 0;
  if (c.sliding_window > 0) {
    json["sliding_window"] = c.sliding_window;
    json["max_window_layers"] = c.first_sliding_layer;
  }
}

}  // namespace

constinit const Family kQwen2Family = {
    .name = "qwen2",
    .architectures = kArchitectures,
    .model_types = kModelTypes,
    .defaults = set_defaults,
    .keys = kKeys,
    .read_rest = read_rest,
    .write_rest = write_rest,
    .prefix = "model.",
    .tensors = kLlamaTensors,
    .drops = kLlamaDrops,
};

}  // namespace llmctl::reshard
