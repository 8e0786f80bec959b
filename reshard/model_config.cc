#include "reshard/model_config.h"

#include <array>

#include "formats/core/error.h"

namespace llmctl {

void validate(const ModelConfig& c, const std::string& where) {
  struct Limit {
    std::string_view name;
    int64_t value, most;
  };
  // Wide enough for any published model; small enough that no product of two overflows.
  constexpr int64_t kMostRows = int64_t{1} << 31;
  const std::array limits = {
      Limit{"vocab_size", c.vocab_size, kMostRows},
      Limit{"hidden_size", c.hidden_size, int64_t{1} << 24},
      Limit{"intermediate_size", c.intermediate_size, int64_t{1} << 26},
      Limit{"num_hidden_layers", c.num_hidden_layers, 10000},
      Limit{"num_attention_heads", c.num_attention_heads, 65536},
      Limit{"num_key_value_heads", c.num_key_value_heads, 65536},
      Limit{"head_dim", c.head_dim, 65536},
      Limit{"word_embed_proj_dim", c.embed_dim(), int64_t{1} << 24},
  };
  for (const Limit& limit : limits) {
    if (limit.value < 1 || limit.value > limit.most) {
      throw_invalid(where, std::string(limit.name) + " is " + std::to_string(limit.value) +
                               ", expected 1 to " + std::to_string(limit.most));
    }
  }
  if (c.max_position_embeddings < 0 || c.max_position_embeddings > kMostRows) {
    throw_invalid(where, "max_position_embeddings is " + std::to_string(c.max_position_embeddings));
  }
  if (c.num_attention_heads % c.num_key_value_heads != 0) {
    throw_invalid(where, "num_attention_heads " + std::to_string(c.num_attention_heads) +
                             " is not a multiple of num_key_value_heads " +
                             std::to_string(c.num_key_value_heads));
  }
  if (c.position == PositionKind::kLearned && c.max_position_embeddings == 0) {
    throw_invalid(where, "max_position_embeddings is missing");
  }
  if (c.position == PositionKind::kRotary &&
      (c.rotary_dim < 2 || c.rotary_dim % 2 != 0 || c.rotary_dim > c.head_dim)) {
    throw_invalid(where, "rotary width " + std::to_string(c.rotary_dim) +
                             " must be even and between 2 and head_dim " +
                             std::to_string(c.head_dim));
  }
  if (c.localized_filtering &&
      (c.hidden_size % 2 != 0 || c.lf_groups < 1 || c.hidden_size / 2 % c.lf_groups != 0)) {
    throw_invalid(where, "localized filtering in " + std::to_string(c.lf_groups) +
                             " groups does not fit hidden_size " + std::to_string(c.hidden_size));
  }
  if (c.true_vocab_size < 0 || c.true_vocab_size > c.vocab_size) {
    throw_invalid(where, "true_vocab_size " + std::to_string(c.true_vocab_size) +
                             " is not between 0 and vocab_size " + std::to_string(c.vocab_size));
  }
  if (!(c.norm_eps >= 0 && c.norm_eps < 1)) throw_invalid(where, "norm epsilon out of range");
}

}  // namespace llmctl
