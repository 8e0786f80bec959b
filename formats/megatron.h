// Megatron-LM's classic ("torch") checkpoint directories, Yuan 2.0's among them: one torch file per
// tensor- and pipeline-parallel rank.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "formats/checkpoint.h"
#include "formats/torch_file.h"

namespace llmctl::formats {

/// How a checkpoint spells its tensors' names. The defaults are those of Megatron-LM 23.x and of
/// Yuan 2.0.
struct MegatronDialect {
  bool core = false;         ///< Megatron-Core: decoder.layers.0.self_attention.linear_qkv ...
  bool fused_norms = false;  ///< core with TransformerEngine: linear_qkv.layer_norm_weight
  std::string encoder = "encoder";           ///< not core; "transformer" until 2021
  std::string attention = "self_attention";  ///< not core; "attention" until 2021
  std::string norm = "layernorm";            ///< not core; "norm" from 2023 on

  /// The dialect's spelling of a name in the default one, e.g.
  /// "language_model.encoder.layers.{l}.input_layernorm.weight".
  std::string spell(std::string_view name) const;

  bool operator==(const MegatronDialect&) const = default;
};

/// What the files say besides the tensors. Immutable; safe to share.
struct MegatronInfo {
  /// The file of rank 0 of stage 0: its `args` and whatever else stands at its top level.
  TorchFile reference;
  std::string step_name;          ///< "iter_0000010" or "release"
  int64_t iteration = 0;          ///< as in the files, else as in the name
  double checkpoint_version = 0;  ///< 0 when the files name none
  MegatronDialect dialect;
  std::vector<std::vector<int64_t>> layers;  ///< of [virtual stage][stage]

  /// The pickled argparse.Namespace; nothing when there is none.
  std::optional<PickleNode> args() const { return reference.root().find("args"); }
};

/// "mp_rank_03_007": ranks, -1 where the name has no such number.
struct MegatronRank {
  int tensor = -1, pipeline = -1, other = -1;
};
std::optional<MegatronRank> parse_megatron_rank(std::string_view name);
/// The name that Megatron gives; without a stage when `stages` is 1.
std::string megatron_rank_name(int tensor, int stage, int stages);

/// Whether `path` is the root of such a tree, or one of its iterations. Never throws.
bool detect_megatron(const std::filesystem::path& path);

/// Reads `path` (a root with its tracker file, or one iteration's directory). Tensors come with
/// global layer numbers, their tensor-parallel rank (every tensor has one: replicas are stored) and
/// their stage. Throws kInvalidInput when ranks are missing, double or of different runs, and on
/// anything that read_torch_file refuses.
Checkpoint read_megatron(const std::filesystem::path& path);

}  // namespace llmctl::formats
