// Attention of one new token per sequence over the paged KV cache, split over the sequence so that
// a single long sequence fills the device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/launch_stream.h"
#include "kernels/cuda/paged_kv.h"

namespace llmctl::kernels::cuda {

/// As kernels::AttentionArgs with one token per sequence: the newest, at position seq_lens[s] - 1,
/// whose k and v are in the cache already.
struct DecodeAttentionArgs {
  const void* q = nullptr;  ///< num_sequences rows of num_heads * head_dim of the cache's dtype,
                            ///< `q_stride` apart; rows 16-byte aligned
  int64_t q_stride = 0;
  DevicePagedKv kv;
  DeviceBlockTables tables;
  const int32_t* seq_lens = nullptr;  ///< (num_sequences), device memory; 0: a padding row, zeros
  int64_t num_sequences = 0;
  int32_t num_heads = 0;  ///< a multiple of kv.num_kv_heads
  float scale = 1.0F;
  const float* alibi_slopes = nullptr;  ///< (num_heads), device memory; null: none
  int32_t window = 0;                   ///< keys seen, the newest included; 0: all
  int32_t num_splits = 1;  ///< 1 .. kMaxDecodeSplits; fixed while a captured graph lives
  void* scratch = nullptr;
};

constexpr int32_t kMaxDecodeSplits = 64;

/// Splits that fill the device for any sequence length.
int32_t decode_attention_splits(int64_t num_sequences, int32_t num_heads, int32_t num_kv_heads,
                                int num_sms);

/// Bytes of scratch, zero before the first call; each call leaves it ready for the next on the same
/// stream.
size_t decode_attention_scratch_bytes(int64_t num_sequences, int32_t num_heads, int32_t head_dim,
                                      int32_t num_splits);

/// y[s] = softmax(scale * q k^T + slope * (j - i)) v per head, softmax in F32 base 2. Same inputs
/// and num_splits give the same bits. Bound: bytes of K and V. Requires, checked by the host that
/// fills the arrays: seq_lens within the block tables.
void decode_attention(void* y,  // (num_sequences, num_heads * head_dim), dtype of the cache
                      const DecodeAttentionArgs& args, const LaunchStream& stream);

}  // namespace llmctl::kernels::cuda
