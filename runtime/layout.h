// How the runtime wants its weights: fused, split by output rows, as rows of the layout notation.
#pragma once

#include <vector>

#include "reshard/model_config.h"
#include "reshard/rule.h"
#include "runtime/parallel.h"

namespace llmctl::runtime {

/// The rows that `load_rank` fills for a rank at `place`. Every matrix is split by its output rows
/// (docs/runtime.md says why); what the model does not have (biases, a tied head) is simply absent
/// after loading. The embedding and what comes before the layers belong to the first stage, what
/// comes after them to the last, which needs the embedding too when the head is tied.
std::vector<reshard::TensorRule> weight_layout(const ModelConfig& config, const RankPlace& place);

}  // namespace llmctl::runtime
