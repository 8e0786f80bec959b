// Which of a model's matrices are quantised, and how (docs/quantisation.md).
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "formats/checkpoint.h"
#include "kernels/quantization.h"
#include "reshard/model_config.h"

namespace llmctl::reshard {

class Model;
struct PlannedTensor;

/// Whether a row of rank_layout is one of the matrices that are quantised: the projections of
/// attention and MLP. Embeddings, positions, the head, norms, biases and convolutions are not.
bool is_quantizable(std::string_view rule_name);

/// Columns of the matrix that holds this canonical tensor (its key); 0 when that is not quantised.
int64_t quantized_columns(std::string_view key, const ModelConfig& config);

/// "INT4 in groups of 64", "INT8 by rows".
std::string quantization_text(const kernels::Quantization& q);

/// How the matrices of an export are quantised; nothing for other checkpoints. Throws kInvalidInput
/// for a description that is damaged or says something unknown.
std::optional<kernels::Quantization> quantization_of(const formats::Checkpoint& checkpoint);

/// How the model's matrices are to be held: as asked, or as its checkpoint has them. Throws kUsage,
/// before anything is read, for groups that do not divide the rows of a matrix, naming the sizes
/// that do, and for a model that is quantised otherwise already. Asked for bits 0: not quantised.
kernels::Quantization choose_quantization(const Model& model,
                                          const std::optional<kernels::Quantization>& asked);

/// The scales (rows, blocks) that the rows of a planned tensor have in their quantised sources, so
/// that they keep their integers; empty when the sources are not quantised that way.
std::vector<float> carried_scales(const Model& model, const PlannedTensor& tensor);

}  // namespace llmctl::reshard
