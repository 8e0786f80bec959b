// Inside the kernels only: attention of a few queries over one chunk of their cache, per
// instruction set.
#pragma once

#include <cstdint>

#include "formats/core/dtype.h"

namespace llmctl::kernels::cpu {

/// Positions [c * kChunk, (c + 1) * kChunk) of a sequence are worked through together, then the
/// chunks are put together in order: where a sequence is cut depends on nothing else, so neither
/// does a result. Scores of a chunk stay in L1, its keys and values in L2.
constexpr int64_t kChunk = 512;

/// Queries that share the reading of a KV head's cache.
constexpr int64_t kBlockRows = 8;

/// What a query makes of one chunk: the largest score, the sum of the weights e^(score - largest),
/// and the values times their weights, from kPartialHead on.
constexpr int64_t kPartialHead = 16;
namespace {  // so that no object file shares code with another
constexpr int64_t partial_floats(int64_t head_dim) {
  return kPartialHead + (head_dim + 15) / 16 * 16;
}
}  // namespace

/// Queries of one sequence that read one KV head.
struct AttentionBlock {
  struct Row {
    const float* q;      ///< (head_dim)
    int64_t begin, end;  ///< the positions it sees; end - 1 is its own
    float slope;         ///< score = scale * dot + slope * (position - (end - 1))
    float* partial;      ///< of the chunk at hand
  };
  Row rows[kBlockRows];
  int64_t num_rows;
  DType dtype;
  const void* keys;     ///< page 0's of the KV head; (page_size, head_dim)
  const void* values;   ///< page 0's of the KV head
  int64_t page_stride;  ///< elements from one page to the next
  const int32_t* block_table;
  int64_t page_size, head_dim;
  float scale;
};

struct AttentionKernel {
  /// Fills the partial of every row that sees a position of the chunk. `scores`: kBlockRows *
  /// kChunk floats.
  void (*run)(const AttentionBlock& block, int64_t chunk, float* scores);
  /// y = what the partials, `count` of them side by side, make together.
  void (*merge)(float* y, const float* partials, int64_t count, int64_t head_dim);
};

extern const AttentionKernel kGenericAttention;
extern const AttentionKernel kAvx2Attention;
extern const AttentionKernel kAvx512Attention;

}  // namespace llmctl::kernels::cpu
