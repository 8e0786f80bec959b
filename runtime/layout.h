// How the runtime wants its weights: fused, split by output rows, as rows of the layout notation.
#pragma once

#include <vector>

#include "reshard/model_config.h"
#include "reshard/rule.h"

namespace llmctl::runtime {

/// The rows that `load_rank` fills for a model of this shape. Every matrix is split by its output
/// rows (docs/runtime.md says why); what the model does not have (biases, a tied head) is simply
/// absent after loading.
std::vector<reshard::TensorRule> weight_layout(const ModelConfig& config);

}  // namespace llmctl::runtime
