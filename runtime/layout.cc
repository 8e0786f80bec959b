#include "runtime/layout.h"

#include "reshard/rank_layout.h"

namespace llmctl::runtime {

std::vector<reshard::TensorRule> weight_layout(const ModelConfig& config, const RankPlace& place) {
  return reshard::rank_layout(config, place.is_first_stage(), place.is_last_stage());
}

}  // namespace llmctl::runtime
