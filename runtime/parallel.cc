#include "runtime/parallel.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "formats/core/error.h"
#include "reshard/rank_layout.h"

namespace llmctl::runtime {
namespace {

struct Divisor {
  const char* name;
  int64_t value;
};

/// The first size that `tp` does not fit, or null name. KV heads are replicated when tp is a
/// multiple of them.
Divisor misfit(const ModelConfig& config, int64_t tp) {
  const int64_t kv = config.num_key_value_heads;
  if (kv != config.num_attention_heads && kv % tp != 0 && tp % kv != 0) {
    return {"num_key_value_heads", kv};
  }
  if (config.num_attention_heads % tp != 0) {
    return {"num_attention_heads", config.num_attention_heads};
  }
  if (config.intermediate_size % tp != 0) return {"intermediate_size", config.intermediate_size};
  return {nullptr, 0};
}

std::string list_of_sizes(const std::vector<int64_t>& sizes) {
  std::string text;
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (i > 0) text += i + 1 == sizes.size() ? " or " : ", ";
    text += std::to_string(sizes[i]);
  }
  return text;
}

}  // namespace

void check_parallel_sizes(const ModelConfig& config, int tp, int pp) {
  if (tp < 1) throw_usage("--tp " + std::to_string(tp), "a tensor-parallel size is at least 1");
  if (pp < 1) throw_usage("--pp " + std::to_string(pp), "a pipeline-parallel size is at least 1");
  if (const Divisor bad = misfit(config, tp); bad.name != nullptr) {
    std::vector<int64_t> good;
    for (int64_t t = 1; t <= config.num_attention_heads; ++t) {
      if (misfit(config, t).name == nullptr) good.push_back(t);
    }
    throw_usage("--tp " + std::to_string(tp),
                std::string(bad.name) + " is " + std::to_string(bad.value) + ", which " +
                    std::to_string(tp) + " does not divide",
                "use " + list_of_sizes(good));
  }
  if (pp > config.num_hidden_layers) {
    throw_usage("--pp " + std::to_string(pp),
                "the model has only " + std::to_string(config.num_hidden_layers) + " layers",
                "use at most --pp " + std::to_string(config.num_hidden_layers));
  }
}

RankPlace place_of_rank(const ModelConfig& config, int tp, int pp, int rank) {
  RankPlace place;
  place.tp = tp;
  place.pp = pp;
  place.tp_rank = rank % tp;
  place.pp_rank = rank / tp;
  const reshard::LayerRange layers =
      reshard::layers_of_stage(config.num_hidden_layers, pp, place.pp_rank);
  place.first_layer = layers.first;
  place.end_layer = layers.end;
  return place;
}

int64_t local_num_key_value_heads(const ModelConfig& config, int tp) {
  return std::max<int64_t>(1, config.num_key_value_heads / tp);
}

int64_t context_limit(const ModelConfig& config) {
  const int64_t trained = config.max_position_embeddings;
  if (config.position == PositionKind::kLearned) return trained;
  if (config.position != PositionKind::kRotary || trained == 0) return 0;
  const RopeScaling& scaling = config.rope_scaling;
  const auto stretched = [&](int64_t base) {
    return static_cast<int64_t>(std::floor(static_cast<double>(base) * scaling.factor));
  };
  int64_t limit = trained;
  // Configs disagree on whether max_position_embeddings already counts the stretching, so the
  // larger reading holds.
  if (scaling.kind == "linear" || scaling.kind == "dynamic") limit = stretched(trained);
  if (scaling.kind == "yarn" && scaling.original_max_position_embeddings > 0) {
    limit = stretched(scaling.original_max_position_embeddings);
  }
  return std::max(limit, trained);
}

}  // namespace llmctl::runtime
