#include "reshard/faster_transformer.h"

#include <algorithm>
#include <array>

#include "formats/core/error.h"

namespace llmctl::reshard {
namespace {

// Shared by the gpt, gptj and gptneox loaders; rows whose canonical tensors a model lacks drop out.
constexpr TensorRule kGptRules[] = {
    {"model.wte", "embed : vocab hidden"},
    {"model.wpe", "pos : position hidden"},
    {"model.pre_decoder_layernorm.weight", "embed_norm : hidden"},
    {"model.pre_decoder_layernorm.bias", "embed_norm_b : hidden"},
    {"model.layers.{l}.input_layernorm.weight", "norm1 : hidden"},
    {"model.layers.{l}.input_layernorm.bias", "norm1b : hidden"},
    {"model.layers.{l}.attention.query_key_value.weight",
     "hidden {q heads/tp d | k kv/tp d | v kv/tp d}"},
    {"model.layers.{l}.attention.query_key_value.bias",
     "{qb heads/tp d | kb kv/tp d | vb kv/tp d}"},
    {"model.layers.{l}.attention.dense.weight", "o : (heads/tp d) hidden"},
    {"model.layers.{l}.post_attention_layernorm.weight", "norm2 : hidden"},
    {"model.layers.{l}.post_attention_layernorm.bias", "norm2b : hidden"},
    {"model.layers.{l}.mlp.dense_h_to_4h.weight", "up : hidden ffn/tp"},
    {"model.layers.{l}.mlp.dense_h_to_4h.bias", "upb : ffn/tp"},
    {"model.layers.{l}.mlp.dense_4h_to_h.weight", "down : ffn/tp hidden"},
    {"model.final_layernorm.weight", "final_norm : hidden"},
    {"model.final_layernorm.bias", "final_norm_b : hidden"},
    {"model.lm_head.bias", "head_bias : vocab"},
};

constexpr TensorRule kWholeBiases[] = {
    {"model.layers.{l}.attention.dense.bias", "ob : hidden"},
    {"model.layers.{l}.mlp.dense_4h_to_h.bias", "downb : hidden"},
};

// GPT-NeoX adds these before the all-reduce, once per rank.
constexpr TensorRule kDividedBiases[] = {
    {"model.layers.{l}.attention.dense.bias", "ob : hidden", Step::kDivideByTp},
    {"model.layers.{l}.mlp.dense_4h_to_h.bias", "downb : hidden", Step::kDivideByTp},
};
constexpr TensorRule kBiasSum = {"model.layers.{l}.mlp.attention.bias.sum", "ob : hidden",
                                 Step::kDivideByTp, "downb : hidden"};

constexpr TensorRule kLlamaRules[] = {
    {"model.wte.weight", "embed : vocab hidden"},
    {"model.layers.{l}.input_layernorm.weight", "norm1 : hidden"},
    {"model.layers.{l}.attention.query_key_value.weight",
     "hidden {q heads/tp d | k kv/tp d | v kv/tp d}"},
    {"model.layers.{l}.attention.query_key_value.bias",
     "{qb heads/tp d | kb kv/tp d | vb kv/tp d}"},
    {"model.layers.{l}.attention.dense.weight", "o : (heads/tp d) hidden"},
    {"model.layers.{l}.attention.dense.bias", "ob : hidden"},
    {"model.layers.{l}.post_attention_layernorm.weight", "norm2 : hidden"},
    {"model.layers.{l}.mlp.gate_proj.weight", "gate : hidden ffn/tp"},
    {"model.layers.{l}.mlp.gate_proj.bias", "gateb : ffn/tp"},
    {"model.layers.{l}.mlp.up_proj.weight", "up : hidden ffn/tp"},
    {"model.layers.{l}.mlp.up_proj.bias", "upb : ffn/tp"},
    {"model.layers.{l}.mlp.down_proj.weight", "down : ffn/tp hidden"},
    {"model.layers.{l}.mlp.down_proj.bias", "downb : hidden"},
    {"model.final_layernorm.weight", "final_norm : hidden"},
};

constexpr DropRule kDrops[] = {
    {"model.layers.{l}.attention.query_key_value.weight.int8", "int8 copy of a float weight"},
    {"model.layers.{l}.attention.dense.weight.int8", "int8 copy of a float weight"},
    {"model.layers.{l}.mlp.dense_h_to_4h.weight.int8", "int8 copy of a float weight"},
    {"model.layers.{l}.mlp.dense_4h_to_h.weight.int8", "int8 copy of a float weight"},
};

}  // namespace

std::string_view ft_section(const ModelConfig& c) {
  if (c.gated_mlp) return c.qkv_bias && !c.o_bias ? "qwen2" : "llama";
  if (c.position != PositionKind::kRotary) return "gpt";
  return c.residual == ResidualKind::kParallelOneNorm ? "gptj" : "gptneox";
}

std::vector<TensorRule> ft_rules(const ModelConfig& c) {
  std::vector<TensorRule> rules;
  const auto append = [&](std::span<const TensorRule> rows) {
    rules.insert(rules.end(), rows.begin(), rows.end());
  };
  const std::string_view section = ft_section(c);
  const bool llama_like = c.gated_mlp;
  if (c.localized_filtering) {
    throw_usage("FasterTransformer", "no loader computes Yuan's localized filtering",
                "write another format with --to");
  }
  if (llama_like && c.norm != NormKind::kRmsNorm) {
    throw_usage("FasterTransformer", "no loader computes a gated MLP behind a layer norm");
  }
  if (!llama_like && c.norm == NormKind::kRmsNorm) {
    throw_usage("FasterTransformer", "no loader computes RMS norms without a gated MLP");
  }
  if (llama_like) {
    append(kLlamaRules);
  } else {
    append(kGptRules);
    if (section == "gptneox") {
      append(kDividedBiases);
      if (c.residual == ResidualKind::kParallelTwoNorms && c.o_bias && c.mlp_bias) {
        rules.push_back(kBiasSum);
      }
    } else {
      append(kWholeBiases);
    }
  }
  // The gpt loader takes the embedding when there is no such file; the others, and
  // FasterTransformer's own OPT files, always have it.
  const bool narrow = c.embed_dim() != c.hidden_size;
  const bool always = section != "gpt" || c.activation == Activation::kRelu || narrow;
  if (!c.tie_word_embeddings || narrow) {
    rules.push_back({"model.lm_head.weight", "head : vocab hidden"});
  } else if (always) {
    rules.push_back({"model.lm_head.weight", "embed : vocab hidden"});
  }
  return rules;
}

std::span<const DropRule> ft_drops() { return kDrops; }

}  // namespace llmctl::reshard
