// LLaMA 1, 2, 3 and what loads as them (Vicuna, Yi, DeepSeek-LLM, ...).
#include "reshard/families/llama_tensors.h"

namespace llmctl::reshard {
namespace {

constexpr std::string_view kArchitectures[] = {"LlamaForCausalLM", "LLaMAForCausalLM",
                                               "LlamaModel"};
constexpr std::string_view kModelTypes[] = {"llama"};

void read_rest(ModelConfig& c, const nlohmann::ordered_json&, const std::string&) {
  c.o_bias = c.qkv_bias;
}

}  // namespace

constinit const Family kLlamaFamily = {
    .name = "llama",
    .architectures = kArchitectures,
    .model_types = kModelTypes,
    .defaults = set_llama_defaults,
    .keys = kLlamaKeys,
    .read_rest = read_rest,
    .write_rest = nullptr,
    .prefix = "model.",
    .tensors = kLlamaTensors,
    .drops = kLlamaDrops,
};

}  // namespace llmctl::reshard
