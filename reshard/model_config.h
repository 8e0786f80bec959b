// One model's architecture: every field that the layouts and the decoder need, whatever the family.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "formats/core/dtype.h"

namespace llmctl {

enum class NormKind { kLayerNorm, kRmsNorm };
enum class PositionKind { kNone, kLearned, kRotary, kAlibi };
enum class RotaryPairing {
  kHalf,         ///< dims i and i + rotary_dim/2 turn together (Hugging Face LLaMA, NeoX)
  kInterleaved,  ///< dims 2i and 2i + 1 turn together (GPT-J)
};
enum class Activation { kRelu, kGelu, kGeluTanh, kSilu, kQuickGelu };
enum class ResidualKind {
  kSequential,        ///< x += attn(norm1 x); x += mlp(norm2 x)
  kParallelOneNorm,   ///< x += attn(norm1 x) + mlp(norm1 x)      (GPT-J)
  kParallelTwoNorms,  ///< x += attn(norm1 x) + mlp(norm2 x)      (GPT-NeoX)
};

/// Frequency scaling, named and computed as in transformers' modeling_rope_utils.py.
struct RopeScaling {
  std::string kind = "default";  ///< default, linear, dynamic, yarn, llama3, longrope
  double factor = 1.0;
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  // llama3
  double beta_fast = 32.0, beta_slow = 1.0;              // yarn
  double attention_factor = 0.0;                         // yarn, longrope; 0: derived
  double mscale = 0.0, mscale_all_dim = 0.0;             // yarn
  bool truncate = true;                                  // yarn
  int64_t original_max_position_embeddings = 0;          // 0: max_position_embeddings
  std::vector<double> short_factor, long_factor;         // longrope

  bool operator==(const RopeScaling&) const = default;
};

/// Sizes are global (not per rank). The defaults describe a plain pre-norm GPT.
struct ModelConfig {
  std::string family;  ///< name of its row in kFamilies: "llama", "gpt2", ...

  int64_t vocab_size = 0;         ///< V, rows of the embedding
  int64_t true_vocab_size = 0;    ///< rows that mean a token, where padding follows; 0: all do
  int64_t hidden_size = 0;        ///< h
  int64_t intermediate_size = 0;  ///< f, width of the MLP (of one half when gated)
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;
  int64_t head_dim = 0;                 ///< d
  int64_t max_position_embeddings = 0;  ///< 0: no limit is known (ALiBi)
  int64_t word_embed_proj_dim = 0;      ///< embedding width when it is not hidden_size (OPT-350m)

  NormKind norm = NormKind::kLayerNorm;
  double norm_eps = 1e-5;
  bool pre_norm = true;             ///< false: x = norm(x + f(x)) (OPT-350m)
  bool residual_from_norm = false;  ///< BLOOM's apply_residual_connection_post_layernorm
  bool embedding_norm = false;      ///< a norm right after the embedding (BLOOM)
  bool final_norm = true;
  ResidualKind residual = ResidualKind::kSequential;

  PositionKind position = PositionKind::kLearned;
  int64_t rotary_dim = 0;  ///< leading dims of each head that turn
  RotaryPairing rotary_pairing = RotaryPairing::kHalf;
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;

  Activation activation = Activation::kGeluTanh;
  bool gated_mlp = false;  ///< down(act(gate x) * up x)

  /// Yuan 2.0: queries and keys are projected from u = RMSNorm(conv2(conv1(n)) + n) where n is the
  /// normed input and each convolution sees the previous token and this one; values from n.
  bool localized_filtering = false;
  int64_t lf_groups = 1;  ///< channel groups of both convolutions
  /// Rotary angles, sines and products rounded to BF16 at every step, as Yuan 2.0 was trained.
  bool rope_in_bf16 = false;

  double attention_scale = 0.0;  ///< 0: head_dim^-0.5
  bool scale_attn_by_inverse_layer_idx = false;
  int64_t sliding_window = 0;       ///< keys each query sees, itself included; 0: all
  int64_t first_sliding_layer = 0;  ///< layers below it see everything

  bool qkv_bias = true, o_bias = true, mlp_bias = true, head_bias = false;
  bool norm_affine = true;  ///< false: norms have no weight and no bias
  bool tie_word_embeddings = true;

  DType dtype = DType::F32;  ///< `torch_dtype` of the config: a hint, the tensors decide
  int64_t bos_token_id = -1, pad_token_id = -1;
  std::vector<int64_t> eos_token_ids;

  int64_t group() const { return num_attention_heads / num_key_value_heads; }
  int64_t embed_dim() const { return word_embed_proj_dim ? word_embed_proj_dim : hidden_size; }

  bool operator==(const ModelConfig&) const = default;
};

/// Throws kInvalidInput (naming `where` and the key) on sizes that are absent, zero, negative,
/// absurd (> 2^31 rows, > 10,000 layers) or that contradict each other.
void validate(const ModelConfig& config, const std::string& where);

}  // namespace llmctl
