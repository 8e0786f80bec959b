#include "reshard/rank_layout.h"

#include <algorithm>
#include <span>

#include "kernels/panels.h"

namespace llmctl::reshard {
namespace {

// `~/tp` pads an axis with zeros to a multiple of tp: rank r holds rows [r * c, (r + 1) * c),
// c = ceil(n / tp).
constexpr TensorRule kEmbedding[] = {
    {"embed", "embed : vocab~/tp hidden"},
    {"embed_narrow", "embed_narrow : vocab~/tp width"},
};

constexpr TensorRule kBeforeLayers[] = {
    {"project_in", "project_in : hidden width"},
    {"pos", "pos : position hidden"},
    {"embed_norm", "embed_norm : hidden"},
    {"embed_norm_b", "embed_norm_b : hidden"},
};

constexpr TensorRule kAfterLayers[] = {
    {"final_norm", "final_norm : hidden"},
    {"final_norm_b", "final_norm_b : hidden"},
    {"project_out", "project_out : width hidden"},
    {"head", "head : vocab~/tp hidden"},
    {"head_narrow", "head_narrow : vocab~/tp width"},
    {"head_bias", "head_bias : vocab~/tp"},
};

constexpr TensorRule kLayer[] = {
    {"layers.{l}.norm1", "norm1 : hidden"},       {"layers.{l}.norm1_b", "norm1b : hidden"},
    {"layers.{l}.norm2", "norm2 : hidden"},       {"layers.{l}.norm2_b", "norm2b : hidden"},
    {"layers.{l}.o", "o : hidden~/tp (heads d)"}, {"layers.{l}.o_b", "ob : hidden~/tp"},
    {"layers.{l}.down", "down : hidden~/tp ffn"}, {"layers.{l}.down_b", "downb : hidden~/tp"},
};

constexpr TensorRule kPlainAttention[] = {
    {"layers.{l}.qkv", "({q heads/tp d | k kv/tp d | v kv/tp d}) hidden"},
    {"layers.{l}.qkv_b", "({qb heads/tp d | kb kv/tp d | vb kv/tp d})"},
};

// Values come from another input than queries and keys. A convolution is a matrix over the previous
// token's channels and this one's.
constexpr TensorRule kFilteredAttention[] = {
    {"layers.{l}.conv1", "conv1 : filter~/tp (tap conv_in)"},
    {"layers.{l}.conv1_b", "conv1b : filter~/tp"},
    {"layers.{l}.conv2", "conv2 : hidden~/tp (tap conv_mid)"},
    {"layers.{l}.conv2_b", "conv2b : hidden~/tp"},
    {"layers.{l}.lf_norm", "lf_norm : hidden"},
    {"layers.{l}.qk", "({q heads/tp d | k kv/tp d}) hidden"},
    {"layers.{l}.v", "v : (kv/tp d) hidden"},
};

constexpr TensorRule kGatedMlp[] = {
    {"layers.{l}.gate_up", "({gate ffn/tp | up ffn/tp}) hidden"},
    {"layers.{l}.gate_up_b", "({gateb ffn/tp | upb ffn/tp})"},
};

constexpr TensorRule kPlainMlp[] = {
    {"layers.{l}.up", "up : ffn/tp hidden"},
    {"layers.{l}.up_b", "upb : ffn/tp"},
};

}  // namespace

std::vector<TensorRule> rank_layout(const ModelConfig& config, bool is_first_stage,
                                    bool is_last_stage) {
  std::vector<TensorRule> rules;
  rules.reserve(64);
  const auto add = [&](std::span<const TensorRule> rows) {
    rules.insert(rules.end(), rows.begin(), rows.end());
  };
  if (is_first_stage || (is_last_stage && config.tie_word_embeddings)) add(kEmbedding);
  if (is_first_stage) add(kBeforeLayers);
  add(kLayer);
  if (config.localized_filtering) {
    add(kFilteredAttention);
  } else {
    add(kPlainAttention);
  }
  if (config.gated_mlp) {
    add(kGatedMlp);
  } else {
    add(kPlainMlp);
  }
  if (is_last_stage) add(kAfterLayers);
  return rules;
}

DType rank_dtype(const Shape& shape, DType source, std::optional<DType> matrix_dtype) {
  if (shape.size() < 2) return DType::F32;
  const DType dtype = matrix_dtype.value_or(source);
  return kernels::has_panels(dtype) ? dtype : DType::F32;
}

LayerRange layers_of_stage(int64_t num_layers, int64_t pp, int64_t stage) {
  const int64_t each = num_layers / pp;
  const int64_t extra = num_layers % pp;
  const int64_t first = each * stage + std::min(stage, extra);
  return {first, first + each + (stage < extra ? 1 : 0)};
}

}  // namespace llmctl::reshard
