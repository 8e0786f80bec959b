// Rotary position embedding of q and k, and the writing of k and v into the paged cache, in one
// launch.
#pragma once

#include <cstdint>

#include "formats/core/dtype.h"
#include "kernels/cuda/launch_stream.h"
#include "kernels/cuda/paged_kv.h"

namespace llmctl::kernels::cuda {

enum class RotaryPairing : uint8_t {
  kNone,         ///< q stays, k is written as it is
  kHalves,       ///< pairs (i, i + rotary_dim / 2): GPT-NeoX, LLaMA
  kInterleaved,  ///< pairs (2i, 2i + 1): GPT-J
  /// Two blocks of rotary_dim / 2 dims, each paired as kHalves; the first turns by `positions`, the
  /// second by `block_positions`: ChatGLM
  kTwoBlocks,
};

struct RotaryKvArgs {
  void* q = nullptr;        ///< num_tokens rows of num_heads * head_dim; turned in place
  const void* k = nullptr;  ///< num_tokens rows of num_kv_heads * head_dim
  const void* v = nullptr;  ///< likewise
  int64_t q_stride = 0, kv_stride = 0;  ///< elements from row to row
  int64_t num_tokens = 0;
  int32_t num_heads = 0;
  DevicePagedKv kv;  ///< q, k and v have its dtype
  DeviceBlockTables tables;
  const int32_t* sequences = nullptr;  ///< (num_tokens) row of `tables` per token; null: token t of
                                       ///< sequence t
  /// (num_tokens) position in the sequence; negative: a padding row, nothing is read or written
  const int32_t* positions = nullptr;

  RotaryPairing pairing = RotaryPairing::kNone;
  int32_t rotary_dim = 0;  ///< even (a multiple of 4 for kTwoBlocks), at most head_dim
  /// (rows, angles) cosine and sine per position, built on the host by the family's rule: angles is
  /// rotary_dim / 2, or rotary_dim / 4 for kTwoBlocks
  const float* cos = nullptr;
  const float* sin = nullptr;
  const int32_t* rotary_positions = nullptr;  ///< (num_tokens) row of cos/sin; null: positions
  const int32_t* block_positions = nullptr;   ///< (num_tokens) second row for kTwoBlocks
};

/// Arithmetic in F32 with one rounding. Bound: bytes; for decode, latency. Requires (checked on the
/// host by whoever fills the arrays): positions inside the block table and the cos/sin tables.
void rotary_kv(const RotaryKvArgs& args, const LaunchStream& stream);

}  // namespace llmctl::kernels::cuda
