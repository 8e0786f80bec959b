// Prefill attention in the shape of FlashAttention-2 (Dao, 2023) on mma.m16n8k16, over pages.
// Bound: flops, 4 S^2 head_dim / 2 per head.
//
// Grid (tile of 64 queries, head, run); four warps take 16 queries each and walk over the keys in
// tiles of 64, which cp.async fetches one ahead into two buffers of shared memory. Scores S = Q K^T
// have queries as rows; the accumulators of two neighbouring tiles of S are the operand A of P V as
// they stand. Softmax statistics of a row lie in the four lanes of its group.
//   merge of a tile: m' = max(m, max s), l' = l 2^(m - m') + sum 2^(s - m'), o likewise.
// Keys before the window and behind the last query of the tile are zeros, not what the page holds:
// 0 x NaN is NaN. Piece c of row r lies at c ^ (r % 8), which spreads ldmatrix over the banks.
#include "kernels/cuda/prefill_attention.h"

#include <bit>

#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/mma.cuh"

namespace llmctl::kernels::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kQueries = 16 * kWarps;
constexpr int kKeys = 64;
constexpr float kLog2E = 1.44269504088896341F;

__device__ __forceinline__ float weight_of(float m, float of) {
  return m == -INFINITY ? 0.0F : exp2_fast(m - of);
}

/// Over the four lanes that share a row.
__device__ __forceinline__ float max_over_t(float v) {
  v = fmaxf(v, __shfl_xor_sync(kFullWarp, v, 1));
  return fmaxf(v, __shfl_xor_sync(kFullWarp, v, 2));
}
__device__ __forceinline__ float sum_over_t(float v) {
  v += __shfl_xor_sync(kFullWarp, v, 1);
  return v + __shfl_xor_sync(kFullWarp, v, 2);
}

/// head_dim up to kDim.
template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads)
    prefill_attention_kernel(T* y, const PrefillAttentionArgs a, int page_shift) {
  constexpr int kPieces = kDim / 8;  // of 16 bytes in a row of a tile
  constexpr int kTilePieces = kKeys * kPieces;
  LLMCTL_DYNAMIC_SHARED(uint4, tiles);  // (2 buffers, K | V, key, piece)
  trigger_dependents();
  wait_for_predecessor();

  const int64_t run = blockIdx.z;
  const int head = blockIdx.y;
  const int num_tokens = a.num_tokens[run];
  const int first_query = blockIdx.x * kQueries;
  if (first_query >= num_tokens) return;
  const int head_dim = a.kv.head_dim;
  const int kv_head = head / (a.num_heads / a.kv.num_kv_heads);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int g = lane >> 2, t = lane & 3;
  const int matrix = lane >> 3, row_in_matrix = lane & 7;

  const int first_position = a.first_positions[run] + first_query;  // of the tile's first query
  const int queries = min(kQueries, num_tokens - first_query);
  const int end = first_position + queries;  // keys that somebody sees
  const int begin = a.window > 0 ? max(0, first_position + 1 - a.window) : 0;
  const int first_tile = begin / kKeys, num_tiles = (end + kKeys - 1) / kKeys;

  const int32_t* const table = a.tables.pages + run * a.tables.stride;
  const T* const head_base =
      static_cast<const T*>(a.kv.pool) + static_cast<int64_t>(kv_head) * a.kv.page_size * head_dim;
  const int64_t v_offset = static_cast<int64_t>(a.kv.num_kv_heads) * a.kv.page_size * head_dim;
  const auto place_of = [](int row, int piece) { return row * kPieces + (piece ^ (row & 7)); };
  const auto load = [&](int tile) {
    uint4* const to = tiles + tile % 2 * 2 * kTilePieces;
    for (int at = threadIdx.x; at < kTilePieces; at += kThreads) {
      const int row = at / kPieces, piece = at % kPieces;
      const int j = tile * kKeys + row;
      const bool inside = j >= begin && j < end && piece * 8 < head_dim;
      const T* from = head_base;
      if (inside) {
        from += table[j >> page_shift] * a.kv.page_stride +
                static_cast<int64_t>(j & (a.kv.page_size - 1)) * head_dim + piece * 8;
      }
      copy_async_16(to + place_of(row, piece), from, inside);
      copy_async_16(to + kTilePieces + place_of(row, piece), inside ? from + v_offset : from,
                    inside);
    }
    commit_async();
  };
  load(first_tile);

  // Two rows of each lane: queries g and g+8 of the warp.
  const T* q_rows[2];
  int position[2];
  bool valid[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int query = warp * 16 + g + 8 * h;
    valid[h] = query < queries;
    position[h] = first_position + query;
    q_rows[h] = static_cast<const T*>(a.q) +
                (a.first_rows[run] + first_query + (valid[h] ? query : 0)) * a.q_stride +
                static_cast<int64_t>(head) * head_dim;
  }
  const auto load_q = [&](int k, uint32_t(&to)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int h = i & 1, dim = 16 * k + 2 * t + 8 * (i >> 1);
      to[i] = valid[h] && dim < head_dim ? *reinterpret_cast<const uint32_t*>(q_rows[h] + dim) : 0;
    }
  };
  constexpr bool kKeepQ = kDim <= 128;  // wider ones leave no registers for it
  uint32_t q[kKeepQ ? kDim / 16 : 1][4];
  if constexpr (kKeepQ) {
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) load_q(k, q[k]);
  }

  const float scale = a.scale * kLog2E;
  const float slope = a.alibi_slopes != nullptr ? a.alibi_slopes[head] * kLog2E : 0.0F;
  float m[2] = {-INFINITY, -INFINITY}, l[2] = {};
  float o[kDim / 8][4] = {};
  for (int tile = first_tile; tile < num_tiles; ++tile) {
    if (tile + 1 < num_tiles) {
      load(tile + 1);
      wait_async<1>();
    } else {
      wait_async<0>();
    }
    __syncthreads();
    const uint4* const k_tile = tiles + tile % 2 * 2 * kTilePieces;
    const uint4* const v_tile = k_tile + kTilePieces;

    float s[kKeys / 8][4] = {};
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      uint32_t q_now[4];
      if constexpr (!kKeepQ) load_q(k, q_now);
      const uint32_t(&qk)[4] = kKeepQ ? q[kKeepQ ? k : 0] : q_now;
#pragma unroll
      for (int i = 0; i < kKeys / 16; ++i) {
        uint32_t b[4];
        const int row = 16 * i + 8 * (matrix >> 1) + row_in_matrix;
        load_matrices(b, k_tile + place_of(row, 2 * k + (matrix & 1)));
        mma_16x8x16<T>(s[2 * i], qk[0], qk[1], qk[2], qk[3], b[0], b[1]);
        mma_16x8x16<T>(s[2 * i + 1], qk[0], qk[1], qk[2], qk[3], b[2], b[3]);
      }
    }
    float top[2] = {m[0], m[1]};
#pragma unroll
    for (int i = 0; i < kKeys / 8; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int h = e >> 1, j = tile * kKeys + 8 * i + 2 * t + (e & 1);
        const int distance = j - position[h];
        const bool seen = distance <= 0 && (a.window == 0 || distance > -a.window);
        s[i][e] = seen ? s[i][e] * scale + slope * static_cast<float>(distance) : -INFINITY;
        top[h] = fmaxf(top[h], s[i][e]);
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      top[h] = max_over_t(top[h]);
      const float shrink = weight_of(m[h], top[h]);
      m[h] = top[h];
      l[h] *= shrink;
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
        o[i][2 * h] *= shrink;
        o[i][2 * h + 1] *= shrink;
      }
    }
#pragma unroll
    for (int i = 0; i < kKeys / 8; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        s[i][e] = weight_of(s[i][e], m[e >> 1]);
        l[e >> 1] += s[i][e];
      }
    }
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      const uint32_t p[4] = {pack2<T>(s[2 * k][0], s[2 * k][1]), pack2<T>(s[2 * k][2], s[2 * k][3]),
                             pack2<T>(s[2 * k + 1][0], s[2 * k + 1][1]),
                             pack2<T>(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
      for (int i = 0; i < kDim / 16; ++i) {
        uint32_t b[4];
        const int row = 16 * k + 8 * (matrix & 1) + row_in_matrix;
        load_matrices_transposed(b, v_tile + place_of(row, 2 * i + (matrix >> 1)));
        mma_16x8x16<T>(o[2 * i], p[0], p[1], p[2], p[3], b[0], b[1]);
        mma_16x8x16<T>(o[2 * i + 1], p[0], p[1], p[2], p[3], b[2], b[3]);
      }
    }
    __syncthreads();  // before the next but one overwrites this tile
  }

#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float total = sum_over_t(l[h]);
    if (!valid[h]) continue;
    const float inverse = total == 0.0F ? 0.0F : 1.0F / total;
    T* const row = y + ((a.first_rows[run] + first_query + warp * 16 + g + 8 * h) *
                            static_cast<int64_t>(a.num_heads) +
                        head) *
                           head_dim;
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) {
      const int dim = 8 * i + 2 * t;
      if (dim >= head_dim) continue;
      row[dim] = static_cast<T>(o[i][2 * h] * inverse);
      row[dim + 1] = static_cast<T>(o[i][2 * h + 1] * inverse);
    }
  }
}

}  // namespace

void prefill_attention(void* y, const PrefillAttentionArgs& args, const LaunchStream& stream) {
  const char* const op = "prefill_attention";
  const ProfileRange range(op);
  const DevicePagedKv& kv = args.kv;
  require(kv.head_dim > 0 && kv.head_dim % 8 == 0 && kv.head_dim <= 256, op,
          "head_dim must be a multiple of 8 up to 256");
  require(kv.page_size > 0 && std::has_single_bit(static_cast<uint32_t>(kv.page_size)), op,
          "page_size must be a power of two");
  require(kv.num_kv_heads > 0 && args.num_heads % kv.num_kv_heads == 0, op,
          "num_heads must be a multiple of num_kv_heads");
  require(is_aligned(kv.pool, 16) && kv.page_stride % 8 == 0, op, "pages must be 16-byte aligned");
  require(is_aligned(args.q, 4) && args.q_stride % 2 == 0, op, "rows of q must be 4-byte aligned");
  require(args.num_runs <= 65535 && args.num_heads <= 65535, op, "at most 65535 runs and heads");
  if (args.num_runs == 0 || args.max_tokens == 0) return;
  const int page_shift = std::countr_zero(static_cast<uint32_t>(kv.page_size));
  const dim3 grid(static_cast<unsigned>((args.max_tokens + kQueries - 1) / kQueries),
                  static_cast<unsigned>(args.num_heads), static_cast<unsigned>(args.num_runs));
  dispatch_16bit(kv.dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto run = [&](auto kernel, size_t dim) {
      launch(kernel, grid, kThreads, 2 * 2 * kKeys * dim * sizeof(T), stream, static_cast<T*>(y),
             args, page_shift);
    };
    if (kv.head_dim <= 64) return run(prefill_attention_kernel<T, 64>, 64);
    if (kv.head_dim <= 128) return run(prefill_attention_kernel<T, 128>, 128);
    run(prefill_attention_kernel<T, 256>, 256);
  });
}

}  // namespace llmctl::kernels::cuda
