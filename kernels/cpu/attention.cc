// The KV cache and attention over it, one (token, head) at a time across threads; and the generic
// version of attention.
#include "kernels/attention.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <vector>

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/simd_generic.h"
#include "kernels/cpu/threads.h"

// The body is written over the Simd of the header above.
#include "kernels/cpu/attention_body.h"

namespace llmctl::kernels {

void cpu::generic_attention_row(const AttentionRow& row) { attention_row(row); }

void kv_append(const PagedKv& kv, const float* k, const float* v, int64_t kv_stride,
               const int32_t* const* block_tables, const int32_t* positions, int64_t num_tokens,
               ThreadPool& pool) {
  const auto bytes = static_cast<size_t>(kv.head_dim) * sizeof(float);
  const auto body = [&](int64_t t) {
    const int64_t position = positions[t];
    float* page = kv.pool + block_tables[t][position / kv.page_size] * kv.page_stride;
    for (int64_t head = 0; head < kv.num_kv_heads; ++head) {
      const int64_t at = (head * kv.page_size + position % kv.page_size) * kv.head_dim;
      const int64_t from = t * kv_stride + head * kv.head_dim;
      std::memcpy(page + at, k + from, bytes);
      std::memcpy(page + at + kv.num_kv_heads * kv.page_size * kv.head_dim, v + from, bytes);
    }
  };
  cpu::for_each_row(pool, num_tokens, 2 * kv.num_kv_heads * kv.head_dim, body);
}

void cpu::attention(Isa isa, float* y, const AttentionArgs& args, ThreadPool& pool) {
  const PagedKv& kv = args.kv;
  const int64_t group = args.num_heads / kv.num_kv_heads;
  const int64_t head_elements = kv.page_size * kv.head_dim;
  const auto body = [&](int64_t i) {
    // Token by token within a head: the tokens of a prefill share its keys and values in L2.
    const int64_t head = i / args.num_tokens;
    const int64_t t = i % args.num_tokens;
    const int64_t position = args.positions[t];
    const int64_t begin = args.window > 0 ? std::max<int64_t>(0, position + 1 - args.window) : 0;
    // Grows to the longest sequence seen and is kept: no memory is taken per call.
    static thread_local std::vector<float> scores;
    const auto needed = static_cast<size_t>(position + 1 - begin);
    if (scores.size() < needed) scores.resize(std::max(needed, 2 * scores.size()));
    AttentionRow row;
    row.y = y + (t * args.num_heads + head) * kv.head_dim;
    row.q = args.q + t * args.q_stride + head * kv.head_dim;
    row.keys = kv.pool + (head / group) * head_elements;
    row.values = row.keys + kv.num_kv_heads * head_elements;
    row.page_stride = kv.page_stride;
    row.block_table = args.block_tables[t];
    row.page_size = kv.page_size;
    row.head_dim = kv.head_dim;
    row.begin = begin;
    row.end = position + 1;
    row.scale = args.scale;
    row.slope = args.alibi_slopes != nullptr ? args.alibi_slopes[head] : 0.0F;
    row.cold = head % group == 0 && (t == 0 || args.block_tables[t] != args.block_tables[t - 1]);
    row.scores = scores.data();
#if defined(__x86_64__)
    if (isa == Isa::kAvx512) return avx512_attention_row(row);
    if (isa == Isa::kAvx2) return avx2_attention_row(row);
#endif
    static_cast<void>(isa);
    generic_attention_row(row);
  };
  int64_t longest = 0;
  for (int64_t t = 0; t < args.num_tokens; ++t) {
    longest = std::max<int64_t>(longest, args.positions[t] + 1);
  }
  for_each_row(pool, args.num_tokens * args.num_heads, 2 * longest * kv.head_dim, body);
}

void attention(float* y, const AttentionArgs& args, ThreadPool& pool) {
  cpu::attention(active_isa(), y, args, pool);
}

}  // namespace llmctl::kernels
