#include "reshard/canonical.h"

#include <algorithm>
#include <array>

#include "formats/core/error.h"

namespace llmctl::reshard {
namespace {

constexpr std::array kCanonical = {
    CanonicalTensor{"embed", "vocab hidden", false},
    CanonicalTensor{"embed_narrow", "vocab width", false},
    CanonicalTensor{"project_in", "hidden width", false},
    CanonicalTensor{"pos", "position hidden", false},
    CanonicalTensor{"pos_lead", "lead hidden", false, true},
    CanonicalTensor{"embed_norm", "hidden", false},
    CanonicalTensor{"embed_norm_b", "hidden", false},
    CanonicalTensor{"norm1", "hidden", true},
    CanonicalTensor{"norm1b", "hidden", true},
    CanonicalTensor{"q", "kv group two half hidden", true},
    CanonicalTensor{"k", "kv two half hidden", true},
    CanonicalTensor{"v", "kv two half hidden", true},
    CanonicalTensor{"qb", "kv group two half", true},
    CanonicalTensor{"kb", "kv two half", true},
    CanonicalTensor{"vb", "kv two half", true},
    CanonicalTensor{"conv1", "filter conv_in tap one", true},
    CanonicalTensor{"conv1b", "filter", true},
    CanonicalTensor{"conv2", "hidden conv_mid tap one", true},
    CanonicalTensor{"conv2b", "hidden", true},
    CanonicalTensor{"lf_norm", "hidden", true},
    CanonicalTensor{"o", "hidden kv group two half", true},
    CanonicalTensor{"ob", "hidden", true},
    CanonicalTensor{"norm2", "hidden", true},
    CanonicalTensor{"norm2b", "hidden", true},
    CanonicalTensor{"gate", "ffn hidden", true},
    CanonicalTensor{"gateb", "ffn", true},
    CanonicalTensor{"up", "ffn hidden", true},
    CanonicalTensor{"upb", "ffn", true},
    CanonicalTensor{"down", "hidden ffn", true},
    CanonicalTensor{"downb", "hidden", true},
    CanonicalTensor{"final_norm", "hidden", false},
    CanonicalTensor{"final_norm_b", "hidden", false},
    CanonicalTensor{"project_out", "width hidden", false},
    CanonicalTensor{"head", "vocab hidden", false},
    CanonicalTensor{"head_narrow", "vocab width", false},
    CanonicalTensor{"head_bias", "vocab", false},
};

}  // namespace

std::span<const CanonicalTensor> canonical_table() { return kCanonical; }

const CanonicalTensor* find_canonical(std::string_view name) {
  for (const CanonicalTensor& tensor : kCanonical) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

std::vector<std::string> split_words(std::string_view text) {
  std::vector<std::string> words;
  for (size_t i = 0; i < text.size();) {
    const size_t end = std::min(text.find(' ', i), text.size());
    if (end > i) words.emplace_back(text.substr(i, end - i));
    i = end + 1;
  }
  return words;
}

AxisSizes::AxisSizes(const ModelConfig& config) {
  // An odd head has no rotary halves; it is then one half of one.
  const int64_t two = config.head_dim % 2 == 0 ? 2 : 1;
  sizes_ = {{"kv", config.num_key_value_heads},
            {"group", config.group()},
            {"two", two},
            {"half", config.head_dim / two},
            {"hidden", config.hidden_size},
            {"vocab", config.vocab_size},
            {"ffn", config.intermediate_size},
            {"position", config.max_position_embeddings},
            {"width", config.embed_dim()},
            {"lead", 2},
            {"filter", config.hidden_size / 2},
            {"conv_in", config.hidden_size / std::max<int64_t>(1, config.lf_groups)},
            {"conv_mid", config.hidden_size / 2 / std::max<int64_t>(1, config.lf_groups)},
            {"tap", 2},
            {"one", 1}};
}

int64_t AxisSizes::get(std::string_view axis) const {
  const auto it = sizes_.find(axis);
  if (it == sizes_.end()) throw_invalid("layout", "unknown axis '" + std::string(axis) + "'");
  return it->second;
}

bool AxisSizes::has(std::string_view axis) const { return sizes_.find(axis) != sizes_.end(); }

Shape canonical_shape(const CanonicalTensor& tensor, const AxisSizes& sizes) {
  Shape shape;
  for (const std::string& axis : split_words(tensor.axes)) shape.push_back(sizes.get(axis));
  return shape;
}

std::string canonical_key(std::string_view name, int64_t layer) {
  if (layer < 0) return std::string(name);
  return "layers." + std::to_string(layer) + "." + std::string(name);
}

std::vector<std::string_view> expected_canonical(const ModelConfig& c) {
  std::vector<std::string_view> names;
  const bool norm_bias = c.norm == NormKind::kLayerNorm && c.norm_affine;
  const auto add = [&](std::string_view name, bool condition) {
    if (condition) names.push_back(name);
  };
  const bool narrow = c.word_embed_proj_dim != 0 && c.word_embed_proj_dim != c.hidden_size;
  add("embed", !narrow);
  for (const std::string_view name : {"embed_narrow", "project_in", "project_out"})
    add(name, narrow);
  add("pos", c.position == PositionKind::kLearned);
  add("embed_norm", c.embedding_norm && c.norm_affine);
  add("embed_norm_b", c.embedding_norm && norm_bias);
  add("norm1", c.norm_affine);
  add("norm1b", norm_bias);
  for (const std::string_view name : {"q", "k", "v", "o"}) add(name, true);
  for (const std::string_view name : {"qb", "kb", "vb"}) add(name, c.qkv_bias);
  for (const std::string_view name : {"conv1", "conv1b", "conv2", "conv2b", "lf_norm"}) {
    add(name, c.localized_filtering);
  }
  add("ob", c.o_bias);
  const bool second_norm = c.residual != ResidualKind::kParallelOneNorm;
  add("norm2", second_norm && c.norm_affine);
  add("norm2b", second_norm && norm_bias);
  add("gate", c.gated_mlp);
  add("gateb", c.gated_mlp && c.mlp_bias);
  add("up", true);
  add("upb", c.mlp_bias);
  add("down", true);
  add("downb", c.mlp_bias);
  add("final_norm", c.final_norm && c.norm_affine);
  add("final_norm_b", c.final_norm && norm_bias);
  add(narrow ? "head_narrow" : "head", !c.tie_word_embeddings);
  add("head_bias", c.head_bias);
  return names;
}

}  // namespace llmctl::reshard
