// Causal attention of runs of neighbouring tokens over the paged KV cache.
#pragma once

#include <cstdint>

#include "kernels/cuda/launch_stream.h"
#include "kernels/cuda/paged_kv.h"

namespace llmctl::kernels::cuda {

/// A run is some neighbouring tokens of one sequence whose k and v, like those of all tokens before
/// them, are in the cache already. Arrays lie in device memory.
struct PrefillAttentionArgs {
  const void* q = nullptr;  ///< rows of num_heads * head_dim of the cache's dtype, `q_stride`
                            ///< apart; 4-byte aligned
  int64_t q_stride = 0;
  DevicePagedKv kv;
  DeviceBlockTables tables;                  ///< a row per run
  const int32_t* first_rows = nullptr;       ///< (num_runs) row of q and y of a run's first token
  const int32_t* num_tokens = nullptr;       ///< (num_runs) tokens of it
  const int32_t* first_positions = nullptr;  ///< (num_runs) position of its first token
  int64_t num_runs = 0;
  int64_t max_tokens = 0;  ///< at least the largest of num_tokens: decides the grid
  int32_t num_heads = 0;   ///< a multiple of kv.num_kv_heads
  float scale = 1.0F;
  const float* alibi_slopes = nullptr;  ///< (num_heads); null: none
  int32_t window = 0;                   ///< keys seen, the query's own included; 0: all
};

/// y = softmax(scale * q k^T + slope * (j - i)) v per token and head, softmax in F32 base 2, P
/// rounded to the cache's dtype before it meets V. The result for one token does not depend on the
/// other tokens' values, but for its place in a tile of 64. Bound: flops.
void prefill_attention(void* y,  // rows of num_heads * head_dim as those of q, dense
                       const PrefillAttentionArgs& args, const LaunchStream& stream);

}  // namespace llmctl::kernels::cuda
