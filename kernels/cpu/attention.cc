// The KV cache and attention over it: blocks of queries that share a KV head, across threads, and
// where those are too few the chunks of a long sequence too; and the generic version.
#include "kernels/attention.h"

#include <algorithm>
#include <functional>
#include <vector>

#include "kernels/convert.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/simd_generic.h"
#include "kernels/cpu/threads.h"

// The body is written over the Simd of the header above.
#include "kernels/cpu/attention_body.h"

namespace llmctl::kernels {

const cpu::AttentionKernel cpu::kGenericAttention = {run_attention, merge_partials};

namespace {

using cpu::AttentionBlock;
using cpu::AttentionKernel;
using cpu::kBlockRows;
using cpu::kChunk;

const AttentionKernel& attention_kernel(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return cpu::kAvx512Attention;
  if (isa == Isa::kAvx2) return cpu::kAvx2Attention;
#endif
  static_cast<void>(isa);
  return cpu::kGenericAttention;
}

/// Scratch of one thread, which grows to the longest sequence seen and is kept: no memory is taken
/// per call.
float* grown(std::vector<float>& scratch, int64_t floats) {
  const auto needed = static_cast<size_t>(floats);
  if (scratch.size() < needed) scratch.resize(std::max(needed, 2 * scratch.size()));
  return scratch.data();
}

/// The calling thread's. A variable of `attention` itself would not be constructed on the workers,
/// which run its lambdas and never pass its declaration.
std::vector<float>& own_scratch() {
  static thread_local std::vector<float> scratch;
  return scratch;
}

/// How the work of one call is cut. A block is a run of tokens of one sequence by some of the query
/// heads of one KV head, kBlockRows rows at most.
struct Blocks {
  const AttentionArgs& args;
  const std::vector<int32_t>& runs;  ///< first token of each run, then num_tokens
  int64_t group, heads_per_block, head_blocks;

  int64_t num_runs() const { return static_cast<int64_t>(runs.size()) - 1; }
  int64_t count() const { return num_runs() * args.kv.num_kv_heads * head_blocks; }

  int64_t begin_of(int64_t t) const {
    const int64_t end = args.positions[t] + 1;
    return args.window > 0 ? std::max<int64_t>(0, end - args.window) : 0;
  }

  /// Calls body(row, token, query head) for the rows of block i, whose partials the caller sets.
  template <typename Body>
  AttentionBlock make(int64_t i, const Body& body) const {
    const PagedKv& kv = args.kv;
    // Run by run within a head: the tokens of a prefill share its keys and values in L2.
    const int64_t run = i % num_runs();
    const int64_t head_block = i / num_runs();
    const int64_t kv_head = head_block / head_blocks;
    const int64_t first_head = kv_head * group + head_block % head_blocks * heads_per_block;
    const int64_t end_head = std::min(first_head + heads_per_block, (kv_head + 1) * group);
    const auto bytes = static_cast<int64_t>(dtype_bytes(kv.dtype));
    const int64_t head_bytes = kv.page_size * kv.head_dim * bytes;
    AttentionBlock block;
    block.num_rows = 0;
    block.dtype = kv.dtype;
    block.keys = static_cast<const char*>(kv.pool) + kv_head * head_bytes;
    block.values = static_cast<const char*>(block.keys) + kv.num_kv_heads * head_bytes;
    block.page_stride = kv.page_stride;
    block.page_size = kv.page_size;
    block.head_dim = kv.head_dim;
    block.scale = args.scale;
    const int64_t first = runs[static_cast<size_t>(run)];
    const int64_t last = runs[static_cast<size_t>(run) + 1];
    block.block_table = args.block_tables[first];
    for (int64_t t = first; t < last; ++t) {
      for (int64_t head = first_head; head < end_head; ++head) {
        AttentionBlock::Row& row = block.rows[block.num_rows++];
        row.q = args.q + t * args.q_stride + head * kv.head_dim;
        row.begin = begin_of(t);
        row.end = args.positions[t] + 1;
        row.slope = args.alibi_slopes != nullptr ? args.alibi_slopes[head] : 0.0F;
        row.partial = nullptr;
        body(row, t, head);
      }
    }
    return block;
  }
};

struct ChunkRange {
  int64_t first, end;
};
ChunkRange chunks_of(int64_t begin, int64_t end) {
  return {begin / kChunk, (end + kChunk - 1) / kChunk};
}

}  // namespace

void kv_append(const PagedKv& kv, const float* k, const float* v, int64_t kv_stride,
               const int32_t* const* block_tables, const int32_t* positions, int64_t num_tokens,
               ThreadPool& pool) {
  const auto width = static_cast<int64_t>(dtype_bytes(kv.dtype));
  const auto body = [&](int64_t t) {
    const int64_t position = positions[t];
    char* page = static_cast<char*>(kv.pool) +
                 block_tables[t][position / kv.page_size] * kv.page_stride * width;
    for (int64_t head = 0; head < kv.num_kv_heads; ++head) {
      const int64_t at = (head * kv.page_size + position % kv.page_size) * kv.head_dim;
      const int64_t from = t * kv_stride + head * kv.head_dim;
      // A value too large for F16 becomes the largest: an infinite one would make every output NaN.
      convert(page + at * width, kv.dtype, k + from, DType::F32, kv.head_dim, Overflow::kClamp);
      convert(page + (at + kv.num_kv_heads * kv.page_size * kv.head_dim) * width, kv.dtype,
              v + from, DType::F32, kv.head_dim, Overflow::kClamp);
    }
  };
  cpu::for_each_row(pool, num_tokens, 2 * kv.num_kv_heads * kv.head_dim, body);
}

void cpu::attention(Isa isa, float* y, const AttentionArgs& args, ThreadPool& pool) {
  if (args.num_tokens <= 0) return;
  const AttentionKernel& kernel = attention_kernel(isa);
  const PagedKv& kv = args.kv;
  const int64_t group = args.num_heads / kv.num_kv_heads;
  const int64_t heads_per_block = std::min(group, kBlockRows);
  const int64_t tokens_per_run = std::max<int64_t>(1, kBlockRows / group);
  static thread_local std::vector<int32_t> runs;
  runs.clear();
  int64_t longest = 0;
  for (int64_t t = 0; t < args.num_tokens; ++t) {
    const bool goes_on = t > 0 && args.block_tables[t] == args.block_tables[t - 1] &&
                         t - runs.back() < tokens_per_run;
    if (!goes_on) runs.push_back(static_cast<int32_t>(t));
    longest = std::max<int64_t>(longest, args.positions[t] + 1);
  }
  runs.push_back(static_cast<int32_t>(args.num_tokens));
  const Blocks blocks{args, runs, group, heads_per_block,
                      (group + heads_per_block - 1) / heads_per_block};
  const int64_t stride = partial_floats(kv.head_dim);
  const int64_t num_chunks = chunks_of(0, longest).end;
  const auto output = [&](int64_t t, int64_t head) {
    return y + (t * args.num_heads + head) * kv.head_dim;
  };

  if (num_chunks == 1 || pool.num_threads() == 1 || blocks.count() >= 4 * pool.num_threads()) {
    const auto body = [&](int64_t i) {
      float* scores = grown(own_scratch(), kBlockRows * (kChunk + num_chunks * stride));
      float* partials = scores + kBlockRows * kChunk;
      float* outputs[kBlockRows];
      int64_t begin = longest;
      int64_t end = 0;
      int64_t num_rows = 0;
      AttentionBlock block =
          blocks.make(i, [&](const AttentionBlock::Row& row, int64_t t, int64_t head) {
            outputs[num_rows++] = output(t, head);
            begin = std::min(begin, row.begin);
            end = std::max(end, row.end);
          });
      const ChunkRange chunks = chunks_of(begin, end);
      for (int64_t chunk = chunks.first; chunk < chunks.end; ++chunk) {
        for (int64_t r = 0; r < block.num_rows; ++r) {
          block.rows[r].partial = partials + (r * num_chunks + chunk) * stride;
        }
        kernel.run(block, chunk, scores);
      }
      for (int64_t r = 0; r < block.num_rows; ++r) {
        const ChunkRange own = chunks_of(block.rows[r].begin, block.rows[r].end);
        kernel.merge(outputs[r], partials + (r * num_chunks + own.first) * stride,
                     own.end - own.first, kv.head_dim);
      }
    };
    return for_each_row(pool, blocks.count(), 2 * kBlockRows * longest * kv.head_dim, body);
  }

  // A long sequence by itself: its chunks on different threads, put together afterwards.
  static thread_local std::vector<float> shared_scratch;
  const int64_t partials_per_row = num_chunks * stride;
  float* partials = grown(shared_scratch, args.num_tokens * args.num_heads * partials_per_row);
  const auto partials_of = [&](int64_t t, int64_t head) {
    return partials + (t * args.num_heads + head) * partials_per_row;
  };
  const auto run_chunk = [&](int64_t i) {
    float* scores = grown(own_scratch(), kBlockRows * kChunk);
    const int64_t chunk = i % num_chunks;
    const AttentionBlock block =
        blocks.make(i / num_chunks, [&](AttentionBlock::Row& row, int64_t t, int64_t head) {
          row.partial = partials_of(t, head) + chunk * stride;
        });
    kernel.run(block, chunk, scores);
  };
  for_each_row(pool, blocks.count() * num_chunks, 2 * kBlockRows * kChunk * kv.head_dim, run_chunk);
  const auto merge = [&](int64_t i) {
    const int64_t t = i / args.num_heads;
    const int64_t head = i % args.num_heads;
    const ChunkRange own = chunks_of(blocks.begin_of(t), args.positions[t] + 1);
    kernel.merge(output(t, head), partials_of(t, head) + own.first * stride, own.end - own.first,
                 kv.head_dim);
  };
  for_each_row(pool, args.num_tokens * args.num_heads, partials_per_row, merge);
}

void attention(float* y, const AttentionArgs& args, ThreadPool& pool) {
  cpu::attention(active_isa(), y, args, pool);
}

}  // namespace llmctl::kernels
