// Mistral: LLaMA whose attention sees a sliding window.
#include "reshard/families/llama_tensors.h"

namespace llmctl::reshard {
namespace {

constexpr std::string_view kArchitectures[] = {"MistralForCausalLM", "MistralModel"};
constexpr std::string_view kModelTypes[] = {"mistral"};

void set_defaults(ModelConfig& c) {
  set_llama_defaults(c);
  c.intermediate_size = 14336;
  c.num_key_value_heads = 8;
  c.max_position_embeddings = 131072;
}

void read_rest(ModelConfig& c, const nlohmann::ordered_json& json, const std::string& where) {
  c.o_bias = c.qkv_bias;
  // An absent key means the original 4096; an explicit null means that every key is seen.
  c.sliding_window = 4096;
  read_sliding_layers(c, json, where, 0);
}

void write_rest(const ModelConfig& c, nlohmann::ordered_json& json) {
  json["sliding_window"] = nullptr;
  if (c.sliding_window > 0) json["sliding_window"] = c.sliding_window;
}

}  // namespace

constinit const Family kMistralFamily = {
    .name = "mistral",
    .architectures = kArchitectures,
    .model_types = kModelTypes,
    .defaults = set_defaults,
    .keys = kLlamaKeys,
    .read_rest = read_rest,
    .write_rest = write_rest,
    .prefix = "model.",
    .tensors = kLlamaTensors,
    .drops = kLlamaDrops,
};

}  // namespace llmctl::reshard
