// What model.json of an export says about the model: every field of ModelConfig, by name.
#pragma once

#include <optional>
#include <string>

#include "formats/checkpoint.h"
#include "formats/export.h"
#include "kernels/quantization.h"
#include "reshard/model_config.h"

namespace llmctl::reshard {

/// The object `config` of model.json, indented below it.
std::string write_export_config(const ModelConfig& config);

/// The model that `checkpoint` (of format "export") holds. Throws kInvalidInput for a field that is
/// unknown, missing or of the wrong kind, and for what `validate` refuses.
ModelConfig read_export_config(const formats::Checkpoint& checkpoint);

/// How the matrices of an export lie in its files.
formats::MatrixLayout matrix_layout_of(const formats::Checkpoint& checkpoint);

/// The axes under which a matrix (rows, columns) stands in a file of panels: panel, group of
/// columns, row of the panel, column of the group.
Shape panel_shape(DType dtype, const Shape& matrix);

/// The same for a quantised matrix, whose file has bytes: panel, block, byte of the block.
Shape quantized_shape(const kernels::Quantization& q, const Shape& matrix);

/// The dtype that norms and biases had before they were widened to F32 for the runtime; nothing for
/// other formats, and when they had several. Giving it back to them loses nothing.
std::optional<DType> vector_dtype_of(const formats::Checkpoint& checkpoint);

}  // namespace llmctl::reshard
