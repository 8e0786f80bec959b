// Megatron-DeepSpeed's pipeline checkpoints, as BLOOM was saved: one torch file per layer and
// tensor-parallel rank. Read only.
#pragma once

#include <filesystem>
#include <optional>
#include <string_view>

#include "formats/checkpoint.h"

namespace llmctl::formats {

/// "layer_03-model_01-model_states.pt": the pipeline's index of the layer, and the rank.
struct DeepSpeedLayerFile {
  int index = 0, rank = 0;
};
std::optional<DeepSpeedLayerFile> parse_deepspeed_layer_file(std::string_view name);

/// Whether `path` is the root of such a tree, or one of its steps. Never throws.
bool detect_deepspeed(const std::filesystem::path& path);

/// Reads `path` (a root with its `latest` file, or one global_step directory). Tensors come with
/// the names that Megatron's own files give them, global layer numbers and their tensor-parallel
/// rank, so that what reads Megatron's models reads these. Throws kInvalidInput when files are
/// missing or of different runs, and on anything that TorchFile refuses.
Checkpoint read_deepspeed(const std::filesystem::path& path);

}  // namespace llmctl::formats
