// Decode attention over the paged cache (flash-decoding) on tensor cores. Bound: bytes of K and V,
// read once per eight query heads of a KV head.
//
// Grid (split, KV head x tile of eight of its query heads, sequence); a warp takes 16 tokens at a
// time and has all their K and V in flight. Scores are computed transposed, tokens as the 16 rows
// of operand A and the query heads as the 8 columns of B: one query head or eight cost the same,
// which is little beside the loads. The order of k inside a product is free, so lane (g, t) loads
// 16 bytes of a K row and uses them as the A fragments of two steps; q is loaded with the same
// order. The scores of a lane then belong to heads 2t and 2t+1, as do its output columns, so
// softmax statistics never leave the lane but for a maximum over g. P becomes operand B by an 8 x 8
// transpose, V operand A (rows are head dims) by pairing the 16-bit halves of two tokens' rows;
// nothing passes through shared memory.
//   merge: m = max(m_i), l = sum l_i 2^(m_i - m), o = sum o_i 2^(m_i - m); empty: m = -inf, l = 0.
// Warps merge through shared memory, splits through scratch: the block that arrives last sums them
// in order of their index, which keeps the result independent of timing. The length of a split is
// computed here from the sequence length, so one graph serves all lengths.
#include "kernels/cuda/decode_attention.h"

#include <algorithm>
#include <bit>

#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/mma.cuh"

namespace llmctl::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kTile = 16;       // tokens per warp and step
constexpr int kHeads = 8;       // query heads per block
constexpr int kMinChunk = 256;  // shorter splits cost more in merging than they win
constexpr float kLog2E = 1.44269504088896341F;

struct Scratch {
  int32_t* arrivals;  ///< (sequence, head): blocks done, zero between calls
  float* m;           ///< (sequence, head, split)
  float* l;
  float* o;  ///< (sequence, head, split, head_dim)
};

/// 2^(m - of) with an empty part (-inf) weighing nothing.
__device__ __forceinline__ float weight_of(float m, float of) {
  return m == -INFINITY ? 0.0F : exp2_fast(m - of);
}

/// The largest among the eight lanes that share t.
__device__ __forceinline__ float max_over_g(float v) {
#pragma unroll
  for (int offset = 4; offset < 32; offset *= 2) {
    v = fmaxf(v, __shfl_xor_sync(kFullWarp, v, offset));
  }
  return v;
}
__device__ __forceinline__ float sum_over_g(float v) {
#pragma unroll
  for (int offset = 4; offset < 32; offset *= 2) v += __shfl_xor_sync(kFullWarp, v, offset);
  return v;
}

/// head_dim up to 64 * kGroups.
template <typename T, int kGroups>
__global__ void __launch_bounds__(kThreads, kGroups > 2 ? 1 : 2)
    decode_attention_kernel(T* y, const DecodeAttentionArgs a, Scratch scratch, int page_shift) {
  constexpr int kBlocks = 2 * kGroups;   // 32 dims of K each
  LLMCTL_DYNAMIC_SHARED(float, warp_o);  // (warp, head, head_dim)
  __shared__ float warp_m[kWarps][kHeads], warp_l[kWarps][kHeads];
  __shared__ float split_weight[kHeads][kMaxDecodeSplits], split_l[kHeads];
  __shared__ bool last;
  trigger_dependents();
  wait_for_predecessor();

  const int split = blockIdx.x;
  const int64_t sequence = blockIdx.z;
  const int head_dim = a.kv.head_dim;
  const int group = a.num_heads / a.kv.num_kv_heads;
  const int head_tiles = (group + kHeads - 1) / kHeads;
  const int kv_head = blockIdx.y / head_tiles;
  const int first_in_group = blockIdx.y % head_tiles * kHeads;
  const int first_head = kv_head * group + first_in_group;
  const int heads = min(kHeads, group - first_in_group);

  const int seq_len = a.seq_lens[sequence];
  const int begin = a.window > 0 ? max(0, seq_len - a.window) : 0;
  const int start = begin & ~(kTile - 1);  // tiles never straddle a page
  const int even = (seq_len - start + a.num_splits - 1) / a.num_splits;
  const int chunk = max(kMinChunk, (even + kTile - 1) & ~(kTile - 1));
  const int active = max(1, (seq_len - start + chunk - 1) / chunk);
  if (split >= active) return;
  const int chunk_begin = start + split * chunk;
  const int chunk_end = min(seq_len, chunk_begin + chunk);

  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int g = lane >> 2, t = lane & 3;

  uint4 q[kBlocks];
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
    const int dim = 32 * i + 8 * t;
    q[i] = make_uint4(0, 0, 0, 0);
    if (g < heads && dim < head_dim) {
      const T* const row = static_cast<const T*>(a.q) + sequence * a.q_stride +
                           static_cast<int64_t>(first_head + g) * head_dim;
      q[i] = *reinterpret_cast<const uint4*>(row + dim);
    }
  }
  float slope[2] = {}, m[2] = {-INFINITY, -INFINITY}, l[2] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (a.alibi_slopes != nullptr && 2 * t + i < heads) {
      slope[i] = a.alibi_slopes[first_head + 2 * t + i] * kLog2E;
    }
  }
  const float scale = a.scale * kLog2E;
  float o[4 * kGroups][4] = {};

  const int32_t* const table = a.tables.pages + sequence * a.tables.stride;
  const T* const head_base =
      static_cast<const T*>(a.kv.pool) + static_cast<int64_t>(kv_head) * a.kv.page_size * head_dim;
  const int64_t v_offset = static_cast<int64_t>(a.kv.num_kv_heads) * a.kv.page_size * head_dim;
  const auto inside = [&](int j) { return j >= begin && j < chunk_end; };

  int base = chunk_begin + warp * kTile;
  int32_t page = base < chunk_end ? table[base >> page_shift] : 0;
  for (; base < chunk_end; base += kWarps * kTile) {
    const T* const k_rows = head_base + page * a.kv.page_stride +
                            static_cast<int64_t>(base & (a.kv.page_size - 1)) * head_dim;
    const T* const v_rows = k_rows + v_offset;
    uint4 k[2][kBlocks], v[4][kGroups];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = g + 8 * h;
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        const int dim = 32 * i + 8 * t;
        k[h][i] = make_uint4(0, 0, 0, 0);
        if (inside(base + row) && dim < head_dim) {
          k[h][i] = *reinterpret_cast<const uint4*>(k_rows + row * head_dim + dim);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int row = 2 * t + (r & 1) + 8 * (r >> 1);
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
        const int dim = 64 * i + 8 * g;
        v[r][i] = make_uint4(0, 0, 0, 0);
        if (inside(base + row) && dim < head_dim) {
          v[r][i] = *reinterpret_cast<const uint4*>(v_rows + row * head_dim + dim);
        }
      }
    }
    // A table entry costs a round trip before its page can be read.
    const int next_base = base + kWarps * kTile;
    if (next_base < chunk_end) page = table[next_base >> page_shift];

    float s[4] = {};  // tokens g, g+8 (second pair) x heads 2t, 2t+1
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      const uint4 lo = k[0][i], hi = k[1][i];
      mma_16x8x16<T>(s, lo.x, hi.x, lo.y, hi.y, q[i].x, q[i].y);
      mma_16x8x16<T>(s, lo.z, hi.z, lo.w, hi.w, q[i].z, q[i].w);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int j = base + g + 8 * (i >> 1);
      const float distance = static_cast<float>(j - (seq_len - 1));
      s[i] = inside(j) ? s[i] * scale + slope[i & 1] * distance : -INFINITY;
    }
    float shrink[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float top = fmaxf(m[i], max_over_g(fmaxf(s[i], s[i + 2])));
      shrink[i] = weight_of(m[i], top);
      m[i] = top;
      s[i] = weight_of(s[i], top);
      s[i + 2] = weight_of(s[i + 2], top);
      l[i] = l[i] * shrink[i] + s[i] + s[i + 2];
    }
    const uint32_t p0 = transpose_8x8(pack2<T>(s[0], s[1]));
    const uint32_t p1 = transpose_8x8(pack2<T>(s[2], s[3]));
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      const uint32_t rows[4][4] = {{v[0][i].x, v[0][i].y, v[0][i].z, v[0][i].w},
                                   {v[1][i].x, v[1][i].y, v[1][i].z, v[1][i].w},
                                   {v[2][i].x, v[2][i].y, v[2][i].z, v[2][i].w},
                                   {v[3][i].x, v[3][i].y, v[3][i].z, v[3][i].w}};
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        float(&to)[4] = o[4 * i + w];
#pragma unroll
        for (int c = 0; c < 4; ++c) to[c] *= shrink[c & 1];
        mma_16x8x16<T>(to, __byte_perm(rows[0][w], rows[1][w], 0x5410),
                       __byte_perm(rows[0][w], rows[1][w], 0x7632),
                       __byte_perm(rows[2][w], rows[3][w], 0x5410),
                       __byte_perm(rows[2][w], rows[3][w], 0x7632), p0, p1);
      }
    }
  }

#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int h = 2 * t + i;
    const float total = sum_over_g(l[i]);
    if (h >= heads) continue;
    if (g == 0) {
      warp_m[warp][h] = m[i];
      warp_l[warp][h] = total;
    }
#pragma unroll
    for (int w = 0; w < 4 * kGroups; ++w) {
      const int dim = 64 * (w / 4) + 8 * g + 2 * (w % 4);
      float* const to = warp_o + (warp * heads + h) * head_dim + dim;
      if (dim < head_dim) {
        to[0] = o[w][i];
        to[1] = o[w][i + 2];
      }
    }
  }
  __syncthreads();
  const int64_t out_row = sequence * a.num_heads + first_head;
  for (int at = threadIdx.x; at < heads * head_dim; at += kThreads) {
    const int h = at / head_dim, i = at % head_dim;
    float top = -INFINITY, sum_l = 0.0F, sum_o = 0.0F;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) top = fmaxf(top, warp_m[w][h]);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float weight = weight_of(warp_m[w][h], top);
      sum_l += warp_l[w][h] * weight;
      sum_o += warp_o[(w * heads + h) * head_dim + i] * weight;
    }
    if (active == 1) {
      y[(out_row + h) * head_dim + i] = static_cast<T>(sum_l == 0.0F ? 0.0F : sum_o / sum_l);
    } else {
      const int64_t part = (out_row + h) * a.num_splits + split;
      scratch.o[part * head_dim + i] = sum_o;
      if (i == 0) {
        scratch.m[part] = top;
        scratch.l[part] = sum_l;
      }
    }
  }
  if (active == 1) return;

  __threadfence();  // this thread's parts before the arrival below
  __syncthreads();
  if (threadIdx.x == 0) {
    int32_t* const arrivals = scratch.arrivals + out_row;
    last = atomicAdd(arrivals, 1) == active - 1;
    if (last) *arrivals = 0;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  if (warp < heads) {  // one warp per head turns the splits' statistics into weights
    const int64_t part = (out_row + warp) * a.num_splits;
    float part_m[2], top = -INFINITY, sum_l = 0.0F;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int p = lane + 32 * i;
      part_m[i] = p < active ? __ldcg(scratch.m + part + p) : -INFINITY;
      top = fmaxf(top, part_m[i]);
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, offset));
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int p = lane + 32 * i;
      const float weight = weight_of(part_m[i], top);
      split_weight[warp][p] = weight;
      if (p < active) sum_l += __ldcg(scratch.l + part + p) * weight;
    }
    sum_l = warp_sum(sum_l);
    if (lane == 0) split_l[warp] = sum_l;
  }
  __syncthreads();
  for (int at = threadIdx.x; at < heads * head_dim; at += kThreads) {
    const int h = at / head_dim, i = at % head_dim;
    const float* const parts = scratch.o + (out_row + h) * a.num_splits * head_dim + i;
    float sum_o = 0.0F;
#pragma unroll 8
    for (int p = 0; p < active; ++p) {
      sum_o += __ldcg(parts + static_cast<int64_t>(p) * head_dim) * split_weight[h][p];
    }
    y[(out_row + h) * head_dim + i] =
        static_cast<T>(split_l[h] == 0.0F ? 0.0F : sum_o / split_l[h]);
  }
}

int64_t align_256(int64_t bytes) { return (bytes + 255) / 256 * 256; }

int32_t head_tiles(int32_t num_heads, int32_t num_kv_heads) {
  return num_kv_heads * ((num_heads / num_kv_heads + kHeads - 1) / kHeads);
}

}  // namespace

int32_t decode_attention_splits(int64_t num_sequences, int32_t num_heads, int32_t num_kv_heads,
                                int num_sms) {
  const int64_t blocks = num_sequences * head_tiles(num_heads, num_kv_heads);
  return static_cast<int32_t>(
      std::clamp<int64_t>((2 * num_sms + blocks - 1) / blocks, 1, kMaxDecodeSplits));
}

size_t decode_attention_scratch_bytes(int64_t num_sequences, int32_t num_heads, int32_t head_dim,
                                      int32_t num_splits) {
  const int64_t rows = num_sequences * num_heads;
  return static_cast<size_t>(align_256(rows * 4) + 2 * align_256(rows * num_splits * 4) +
                             rows * num_splits * head_dim * 4);
}

void decode_attention(void* y, const DecodeAttentionArgs& args, const LaunchStream& stream) {
  const char* const op = "decode_attention";
  const ProfileRange range(op);
  const DevicePagedKv& kv = args.kv;
  require(kv.head_dim > 0 && kv.head_dim % 8 == 0 && kv.head_dim <= 256, op,
          "head_dim must be a multiple of 8 up to 256");
  require(kv.page_size >= kTile && std::has_single_bit(static_cast<uint32_t>(kv.page_size)), op,
          "page_size must be a power of two, at least 16");
  require(kv.num_kv_heads > 0 && args.num_heads % kv.num_kv_heads == 0, op,
          "num_heads must be a multiple of num_kv_heads");
  require(is_aligned(kv.pool, 16) && kv.page_stride % 8 == 0 && is_aligned(args.q, 16) &&
              args.q_stride % 8 == 0,
          op, "pages and rows of q must be 16-byte aligned");
  require(args.num_splits >= 1 && args.num_splits <= kMaxDecodeSplits, op, "1 .. 64 splits");
  require(args.num_splits == 1 || args.scratch != nullptr, op, "splits need scratch");
  require(args.num_sequences <= 65535, op, "at most 65535 sequences");
  if (args.num_sequences == 0) return;

  const int64_t rows = args.num_sequences * args.num_heads;
  char* const base = static_cast<char*>(args.scratch);
  const int64_t stats = align_256(rows * args.num_splits * 4);
  const Scratch scratch{.arrivals = reinterpret_cast<int32_t*>(base),
                        .m = reinterpret_cast<float*>(base + align_256(rows * 4)),
                        .l = reinterpret_cast<float*>(base + align_256(rows * 4) + stats),
                        .o = reinterpret_cast<float*>(base + align_256(rows * 4) + 2 * stats)};
  const int page_shift = std::countr_zero(static_cast<uint32_t>(kv.page_size));
  const int32_t heads = std::min(kHeads, args.num_heads / kv.num_kv_heads);
  const size_t shared = sizeof(float) * kWarps * static_cast<size_t>(heads * kv.head_dim);
  const dim3 grid(static_cast<unsigned>(args.num_splits),
                  static_cast<unsigned>(head_tiles(args.num_heads, kv.num_kv_heads)),
                  static_cast<unsigned>(args.num_sequences));
  dispatch_16bit(kv.dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto run = [&](auto kernel) {
      launch(kernel, grid, kThreads, shared, stream, static_cast<T*>(y), args, scratch, page_shift);
    };
    if (kv.head_dim <= 64) return run(decode_attention_kernel<T, 1>);
    if (kv.head_dim <= 128) return run(decode_attention_kernel<T, 2>);
    run(decode_attention_kernel<T, 4>);
  });
}

}  // namespace llmctl::kernels::cuda
