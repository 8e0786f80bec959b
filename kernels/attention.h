// The paged KV cache: appending to it, and causal attention over it.
#pragma once

#include <cstdint>

#include "formats/core/dtype.h"
#include "formats/core/thread_pool.h"

namespace llmctl::kernels {

/// One layer's paged KV cache: pages of [K|V][num_kv_heads][page_size][head_dim].
struct PagedKv {
  void* pool = nullptr;      ///< first page of this layer
  DType dtype = DType::F32;  ///< F32, F16 or BF16
  int64_t page_stride = 0;   ///< elements from one page to the next
  int64_t num_kv_heads = 0, head_dim = 0, page_size = 0;
};

/// Writes k and v of each token to its page, rounded to the cache's dtype (to nearest; what is too
/// large for F16 becomes its largest value). block_tables[t] is the block table of token t's
/// sequence: page of position p is block_tables[t][p / page_size].
void kv_append(const PagedKv& kv,
               const float* k,  // num_tokens rows of num_kv_heads * head_dim, `kv_stride` apart
               const float* v, int64_t kv_stride, const int32_t* const* block_tables,
               const int32_t* positions, int64_t num_tokens, ThreadPool& pool);

/// Causal attention of each token over its sequence's cache, positions 0 .. positions[t] (which
/// must have been appended). Query head h reads KV head h / (num_heads / num_kv_heads).
struct AttentionArgs {
  const float* q = nullptr;  ///< num_tokens rows of num_heads * head_dim, `q_stride` apart
  int64_t q_stride = 0;
  PagedKv kv;
  const int32_t* const* block_tables = nullptr;  ///< per token
  const int32_t* positions = nullptr;            ///< per token
  int64_t num_tokens = 0, num_heads = 0;
  float scale = 1.0F;
  const float* alibi_slopes = nullptr;  ///< per local query head; adds slope * (j - i); null: none
  int64_t window = 0;                   ///< keys seen, the query's own included; 0: all
};
void attention(float* y,  // (num_tokens, num_heads * head_dim)
               const AttentionArgs& args, ThreadPool& pool);

namespace reference {
void attention(float* y, const AttentionArgs& args);
}  // namespace reference

}  // namespace llmctl::kernels
