// Which tp x pp grids a model can run on, and what part of it each rank holds.
#pragma once

#include <cstdint>

#include "reshard/model_config.h"

namespace llmctl::runtime {

/// One rank's place in the grid: rank = pp_rank * tp + tp_rank.
struct RankPlace {
  int tp = 1, tp_rank = 0;
  int pp = 1, pp_rank = 0;
  int64_t first_layer = 0, end_layer = 0;  ///< global layer indices, end excluded

  int rank() const { return pp_rank * tp + tp_rank; }
  bool is_first_stage() const { return pp_rank == 0; }
  bool is_last_stage() const { return pp_rank == pp - 1; }
};

/// Throws kUsage with one line naming the flag, the number that does not divide and what works.
void check_parallel_sizes(const ModelConfig& config, int tp, int pp);

/// Requires: check_parallel_sizes passed. Layers come in blocks as even as can be; the first
/// stages hold the odd ones.
RankPlace place_of_rank(const ModelConfig& config, int tp, int pp, int rank);

/// KV heads in one rank's cache: num_key_value_heads / tp, or the one it shares when tp is larger.
int64_t local_num_key_value_heads(const ModelConfig& config, int tp);

/// Positions that the model can tell apart: its table of learned positions, or
/// max_position_embeddings stretched as rope scaling allows. 0: no limit is known.
int64_t context_limit(const ModelConfig& config);

}  // namespace llmctl::runtime
