// What each rank of a tp x pp grid holds, and how: the layout that the runtime computes with and
// that an export has on the disk.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "formats/core/checked.h"
#include "formats/core/dtype.h"
#include "reshard/model_config.h"
#include "reshard/rule.h"

namespace llmctl::reshard {

/// The rows that a rank holds: fused, every matrix split by its output rows (docs/runtime.md says
/// why). What the model does not have (biases, a tied head) is simply absent. The embedding and
/// what comes before the layers belong to the first stage, what comes after them to the last, which
/// needs the embedding too when the head is tied.
std::vector<TensorRule> rank_layout(const ModelConfig& config, bool is_first_stage,
                                    bool is_last_stage);

/// The dtype of a rank's tensor: matrices (two or more stored axes) have `matrix_dtype`, or that of
/// their source; vectors are F32.
DType rank_dtype(const Shape& shape, DType source, std::optional<DType> matrix_dtype);

/// Layers [first, end) of a pipeline stage.
struct LayerRange {
  int64_t first = 0, end = 0;
};
/// Blocks as even as can be; the first stages hold the odd layers.
LayerRange layers_of_stage(int64_t num_layers, int64_t pp, int64_t stage);

}  // namespace llmctl::reshard
