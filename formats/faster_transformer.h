// FasterTransformer checkpoints: an N-gpu directory of raw arrays and config.ini.
#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/checkpoint.h"

namespace llmctl::formats {

/// A weights file's name taken apart: "model.layers.0.mlp.dense_h_to_4h.weight.1.bin" is the tensor
/// "model.layers.0.mlp.dense_h_to_4h.weight" of rank 1.
struct FtFileName {
  std::string tensor;
  int tp_rank = -1;  ///< -1: the tensor is whole on every rank
};

/// Nothing when `name` is not "model.*.bin", or when a rank is not written plainly ("01").
std::optional<FtFileName> parse_ft_file_name(std::string_view name);

/// N of "N-gpu"; nothing for another name, N = 0, or N above 65536.
std::optional<int> parse_ft_directory_name(std::string_view name);

/// Whether `path` looks like an N-gpu directory or the parent of some. Never throws.
bool detect_faster_transformer(const std::filesystem::path& path);

/// Reads config.ini and the sizes of all files; no weights. `path` is an N-gpu directory or holds
/// exactly one. Tensors have one axis: the files do not say more. Every split tensor must have
/// the ranks 0 to N-1 with equal sizes, where N agrees with the directory's name and with
/// tensor_para_size. Throws kInvalidInput on the first fault.
Checkpoint read_faster_transformer(const std::filesystem::path& path);

/// One raw file per tensor, `<name>[.<tp_rank>].bin`. Throws kInternal on a name that is no file
/// name.
std::vector<FilePlan> place_faster_transformer(std::span<const TargetTensor> tensors,
                                               const WriteOptions& options);

}  // namespace llmctl::formats
