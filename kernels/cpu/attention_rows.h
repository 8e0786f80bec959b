// Inside the kernels only: attention of one query head of one token, per instruction set.
#pragma once

#include <cstdint>

namespace llmctl::kernels::cpu {

/// One query against the positions [begin, end) of one KV head's cache.
struct AttentionRow {
  float* y;             ///< (head_dim)
  const float* q;       ///< (head_dim)
  const float* keys;    ///< page 0's keys of this KV head; (page_size, head_dim)
  const float* values;  ///< page 0's values of this KV head
  int64_t page_stride;  ///< elements from one page to the next
  const int32_t* block_table;
  int64_t page_size, head_dim;
  int64_t begin, end;
  float scale, slope;  ///< score = scale * dot + slope * (position - (end - 1))
  bool cold;      ///< nobody has just read this cache: bring the next page in while on this one
  float* scores;  ///< scratch for end - begin floats
};

void generic_attention_row(const AttentionRow& row);
void avx2_attention_row(const AttentionRow& row);
void avx512_attention_row(const AttentionRow& row);

}  // namespace llmctl::kernels::cpu
