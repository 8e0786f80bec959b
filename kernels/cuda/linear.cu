// Products of few tokens with a row-major weight matrix. Bound: bytes of w, 2 n k.
//
// linear_fma_kernel, one token: a team of warps shares a row, every lane takes 16 bytes of each
// 512-byte piece. The team is so large that a block reads 16 KiB in one run at a time: with eight
// rows side by side instead, HBM gives 10 % less (H200, k = 4096: 4.0 against 4.3 TB/s).
// Parallelism comes from a register double buffer: the loads of the next step are issued before the
// products of this one (25 KiB in flight per SM hide a loaded HBM; 4 loads x 16 bytes x 1024
// threads are 64 KiB). x lies in shared memory, as F32 in an order that lets a quarter warp read
// 128 consecutive bytes.
//
// linear_mma_kernel, 2 .. 16 tokens: mma.m16n8k16 with 16 weight rows as operand A. Lane (g, t) of
// a warp takes k = 8t .. 8t+7 of rows g and g+8 in two 16-byte loads and feeds them to two mma
// steps in that order; x is read with the same order of k, which is one 16-byte load of token g's
// row. The order of k inside a row is free as long as both operands share it, so weights need no
// repacking. K is split over the eight warps of a block and summed through shared memory in warp
// order.
//
// Both start fetching weights before they wait for the kernel that produces x.
#include "kernels/cuda/linear.h"

#include <algorithm>

#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/mma.cuh"

namespace llmctl::kernels::cuda {
namespace {

constexpr int kThreads = kMmaThreads;
constexpr int kWarps = kMmaWarps;

struct Params {
  Epilogue epilogue;
  const void* x;
  const void* w;
  const void* norm_weight;
  const void* norm_bias;
  int64_t n, k;
  int32_t num_tokens;
  float norm_eps;
  DType x_dtype;
  NormKind norm;
  bool gated;
};

/// Shared-memory slot (in float4) of the first half of eight-element vector v; the second half lies
/// 32 slots further.
__device__ __forceinline__ int x_slot(int v) { return (v >> 5) * 64 + (v & 31); }

constexpr int kEarly = 2;  // vectors of norm parameters per thread in registers: k up to 4096

/// The norm's weight and bias of this thread's first vectors. Fetched before the predecessor has
/// ended, because a trip to HBM between x and the product would be seen in full.
struct EarlyParameters {
  uint4 weight[kEarly], bias[kEarly];
};

__device__ __forceinline__ EarlyParameters load_early(const Params& p) {
  EarlyParameters early;
#pragma unroll
  for (int i = 0; i < kEarly; ++i) {
    const int v = threadIdx.x + i * kThreads;
    const bool inside = p.norm != NormKind::kNone && v < p.k / 8;
    early.weight[i] = early.bias[i] = make_uint4(0, 0, 0, 0);
    if (inside && p.norm_weight != nullptr) {
      early.weight[i] = static_cast<const uint4*>(p.norm_weight)[v];
    }
    if (inside && p.norm_bias != nullptr) {
      early.bias[i] = static_cast<const uint4*>(p.norm_bias)[v];
    }
  }
  return early;
}

/// x as F32 into shared memory, normalised if asked for, zeros behind its end up to whole steps.
/// Ends with a barrier.
template <typename T>
__device__ void stage_x(float4* xs, float* scratch, const Params& p, const EarlyParameters& early,
                        int padded_vectors) {
  const int vectors = static_cast<int>(p.k / 8);
  float sum = 0.0F;
  const auto put = [&](int v, const float(&e)[8]) {
    xs[x_slot(v)] = make_float4(e[0], e[1], e[2], e[3]);
    xs[x_slot(v) + 32] = make_float4(e[4], e[5], e[6], e[7]);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += p.norm == NormKind::kRmsNorm ? e[i] * e[i] : e[i];
  };
  // Two loads before the first use: a trip to L2 each would be seen in full.
  for (int v = threadIdx.x; v < padded_vectors; v += 2 * kThreads) {
    float e[2][8] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (v + i * kThreads < vectors) load_8(p.x, p.x_dtype, v + i * kThreads, e[i]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (v + i * kThreads < padded_vectors) put(v + i * kThreads, e[i]);
    }
  }
  if (p.norm == NormKind::kNone) {
    __syncthreads();
    return;
  }
  const float inv_k = 1.0F / static_cast<float>(p.k);
  float mean = 0.0F;
  float variance = block_sum(sum, scratch) * inv_k;
  if (p.norm == NormKind::kLayerNorm) {
    mean = variance;
    // Second pass over this thread's own slots: the difference form loses no digits.
    sum = 0.0F;
    for (int v = threadIdx.x; v < vectors; v += kThreads) {
      const float4 a = xs[x_slot(v)], b = xs[x_slot(v) + 32];
      const float e[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) sum += (e[i] - mean) * (e[i] - mean);
    }
    variance = block_sum(sum, scratch) * inv_k;
  }
  const float scale = 1.0F / sqrtf(variance + p.norm_eps);
  const auto normalise = [&](int v, const uint4& raw_weight, const uint4& raw_bias) {
    float weight[8], bias[8];
    unpack8<T>(raw_weight, weight);
    unpack8<T>(raw_bias, bias);
    const float4 a = xs[x_slot(v)], b = xs[x_slot(v) + 32];
    float e[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      e[i] = (e[i] - mean) * scale * (p.norm_weight != nullptr ? weight[i] : 1.0F) + bias[i];
    }
    xs[x_slot(v)] = make_float4(e[0], e[1], e[2], e[3]);
    xs[x_slot(v) + 32] = make_float4(e[4], e[5], e[6], e[7]);
  };
#pragma unroll
  for (int i = 0; i < kEarly; ++i) {
    const int v = threadIdx.x + i * kThreads;
    if (v < vectors) normalise(v, early.weight[i], early.bias[i]);
  }
  for (int v = threadIdx.x + kEarly * kThreads; v < vectors; v += kThreads) {
    const uint4 zero = make_uint4(0, 0, 0, 0);
    normalise(v, p.norm_weight != nullptr ? static_cast<const uint4*>(p.norm_weight)[v] : zero,
              p.norm_bias != nullptr ? static_cast<const uint4*>(p.norm_bias)[v] : zero);
  }
  __syncthreads();
}

/// 16-bit x as it is, zeros behind its end. Ends with a barrier.
__device__ __forceinline__ void stage_packed(uint4* xs, const uint4* x, int vectors,
                                             int padded_vectors) {
  constexpr int kBatch = 4;  // loads before the first use: a trip to L2 each would be seen in full
  for (int v = threadIdx.x; v < padded_vectors; v += kBatch * kThreads) {
    uint4 raw[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      raw[i] = make_uint4(0, 0, 0, 0);
      if (v + i * kThreads < vectors) raw[i] = x[v + i * kThreads];
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (v + i * kThreads < padded_vectors) xs[v + i * kThreads] = raw[i];
    }
  }
  __syncthreads();
}

/// The sum of eight products, in order.
template <typename T>
__device__ __forceinline__ float dot_8(const uint4& weights, const float4& a, const float4& b) {
  float e[8];
  unpack8<T>(weights, e);
  float sum = e[0] * a.x;
  sum += e[1] * a.y;
  sum += e[2] * a.z;
  sum += e[3] * a.w;
  sum += e[4] * b.x;
  sum += e[5] * b.y;
  sum += e[6] * b.z;
  sum += e[7] * b.w;
  return sum;
}

/// `finish` for a gated pair of one token.
__device__ __forceinline__ void finish_gated(const Params& p, float gate, float up, int64_t row) {
  const Epilogue& e = p.epilogue;
  if (e.bias != nullptr) {
    gate += load_element(e.bias, e.bias_dtype, row);
    up += load_element(e.bias, e.bias_dtype, row + p.n);
  }
  float value = activate(gate, e.activation) * up;
  if (e.residual != nullptr) value += e.residual[row];
  store_element(e.y, e.y_dtype, row, value);
}

/// kPackedX: x lies in shared memory as it came, 16 bits each, which leaves room for four blocks
/// where k is large; else as F32, which a fused norm needs.
template <typename T, bool kPackedX>
__global__ void __launch_bounds__(kThreads, 4) linear_fma_kernel(const Params p, int team) {
  constexpr int kLoads = 4;
  constexpr int kStep = 32 * kLoads;  // vectors of eight elements per warp and step
  LLMCTL_DYNAMIC_SHARED(float4, xs);
  __shared__ float scratch[32];
  __shared__ float team_sums[2][kWarps];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int vectors = static_cast<int>(p.k / 8);
  const int steps = (vectors + kStep * team - 1) / (kStep * team);
  const int teams = kWarps / team, in_team = warp % team;
  const int64_t groups = (p.n + teams - 1) / teams;  // rows of one block at one time
  const int halves = p.gated ? 2 : 1;                // gate rows, then up rows of a group
  const uint4* const w = static_cast<const uint4*>(p.w);

  const auto row_of = [&](int64_t group) { return group * teams + warp / team; };
  const auto load = [&](uint4(&to)[kLoads], int64_t group, int half, int step) {
    // Rows past the end read the last one and are not written.
    const uint4* const from = w + (min(row_of(group), p.n - 1) + half * p.n) * vectors;
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const int v = ((step * kLoads + j) * team + in_team) * 32 + lane;
      to[j] = make_uint4(0, 0, 0, 0);
      if (v < vectors) to[j] = load_streaming(from + v);
    }
  };

  uint4 current[kLoads], next[kLoads];
  int64_t group = blockIdx.x;
  int half = 0, step = 0, buffer = 0;
  trigger_dependents();
  load(current, group, 0, 0);
  [[maybe_unused]] EarlyParameters early;
  if constexpr (!kPackedX) early = load_early(p);
  wait_for_predecessor();
  auto* const packed = reinterpret_cast<uint4*>(xs);
  if constexpr (kPackedX) {
    stage_packed(packed, static_cast<const uint4*>(p.x), vectors, steps * kStep * team);
  } else {
    stage_x<T>(xs, scratch, p, early, steps * kStep * team);
  }

  float sum = 0.0F, gate = 0.0F;
  while (true) {
    const bool last_step = step + 1 == steps, last_half = half + 1 == halves;
    const int next_step = last_step ? 0 : step + 1;
    const int next_half = last_step ? (last_half ? 0 : 1) : half;
    const int64_t next_group = last_step && last_half ? group + gridDim.x : group;
    const bool more = next_group < groups;
    if (more) load(next, next_group, next_half, next_step);
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const int piece = (step * kLoads + j) * team + in_team;  // of 32 vectors
      if constexpr (kPackedX) {
        float e[8];
        unpack8<T>(packed[piece * 32 + lane], e);
        sum += dot_8<T>(current[j], make_float4(e[0], e[1], e[2], e[3]),
                        make_float4(e[4], e[5], e[6], e[7]));
      } else {
        const int slot = piece * 64 + lane;
        sum += dot_8<T>(current[j], xs[slot], xs[slot + 32]);
      }
    }
    if (last_step) {
      float total = warp_sum(sum);
      sum = 0.0F;
      if (team > 1) {
        // Two buffers make one barrier enough, as in linear_mma_kernel.
        if (lane == 0) team_sums[buffer][warp] = total;
        __syncthreads();
        total = 0.0F;
        for (int i = 0; i < team; ++i) total += team_sums[buffer][warp - in_team + i];
        buffer ^= 1;
      }
      const int64_t row = row_of(group);
      if (!last_half) {
        gate = total;
      } else if (in_team == 0 && lane == 0 && row < p.n) {
        p.gated ? finish_gated(p, gate, total, row) : finish(p.epilogue, total, row, row);
      }
    }
    if (!more) break;
    group = next_group;
    half = next_half;
    step = next_step;
#pragma unroll
    for (int j = 0; j < kLoads; ++j) current[j] = next[j];
  }
}

/// kTiles tiles of eight tokens.
template <typename T, int kTiles>
__global__ void __launch_bounds__(kThreads, 2) linear_mma_kernel(const Params p) {
  constexpr int kChunks = 4;  // 32-wide pieces of K per warp and step, two loads each
  __shared__ WarpSums<kTiles> partial[2];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int g = lane >> 2, t = lane & 3;
  const int vectors = static_cast<int>(p.k / 8);
  // Two neighbouring pieces make 128 bytes of a row; the warps take such pairs in turn, so that the
  // block reads 1 KiB of each row at a time.
  constexpr int kBlockVectors = kWarps * 8;  // per pair of pieces
  const int steps = (vectors + kBlockVectors * (kChunks / 2) - 1) / (kBlockVectors * (kChunks / 2));
  const int64_t tiles = (p.n + 15) / 16;
  const uint4* const w = static_cast<const uint4*>(p.w);
  const uint4* const x = static_cast<const uint4*>(p.x);

  const auto vector_of = [&](int step, int chunk) {
    return (step * (kChunks / 2) + chunk / 2) * kBlockVectors + warp * 8 + (chunk & 1) * 4 + t;
  };
  const auto load = [&](uint4(&to)[kChunks][2], int64_t tile, int step) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint4* const from = w + min(tile * 16 + g + 8 * h, p.n - 1) * vectors;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const int v = vector_of(step, c);
        to[c][h] = make_uint4(0, 0, 0, 0);
        if (v < vectors) to[c][h] = load_streaming(from + v);
      }
    }
  };

  uint4 current[kChunks][2], next[kChunks][2];
  int64_t tile = blockIdx.x;
  int step = 0, buffer = 0;
  trigger_dependents();
  load(current, tile, 0);
  wait_for_predecessor();

  float c[kTiles][4] = {};
  while (true) {
    const bool last_step = step + 1 == steps;
    const int64_t next_tile = last_step ? tile + gridDim.x : tile;
    const int next_step = last_step ? 0 : step + 1;
    const bool more = next_tile < tiles;
    if (more) load(next, next_tile, next_step);
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const int token = 8 * j + g;
      uint4 b[kChunks];
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        const int v = vector_of(step, i);
        b[i] = make_uint4(0, 0, 0, 0);
        if (token < p.num_tokens && v < vectors) {
          b[i] = x[static_cast<int64_t>(token) * vectors + v];
        }
      }
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        const uint4 lo = current[i][0], hi = current[i][1];
        mma_16x8x16<T>(c[j], lo.x, hi.x, lo.y, hi.y, b[i].x, b[i].y);
        mma_16x8x16<T>(c[j], lo.z, hi.z, lo.w, hi.w, b[i].z, b[i].w);
      }
    }
    if (last_step) {
      sum_over_warps<kTiles>(partial[buffer], c, [&](float sum, int token, int row_in_tile) {
        const int64_t row = tile * 16 + row_in_tile;
        if (token < p.num_tokens && row < p.n) finish(p.epilogue, sum, row, token * p.n + row);
      });
      buffer ^= 1;
    }
    if (!more) break;
    tile = next_tile;
    step = next_step;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      current[i][0] = next[i][0];
      current[i][1] = next[i][1];
    }
  }
}

Params make_params(void* y, DType y_dtype, const LinearArgs& a) {
  const char* const op = "linear";
  require(a.k > 0 && a.k % 8 == 0 && a.k <= kMaxLinearK, op, "k must be a multiple of 8");
  require(a.n > 0 && a.num_tokens > 0, op, "empty product");
  require(a.x_dtype == DType::F32 || a.x_dtype == a.w_dtype, op, "x is F32 or has the dtype of w");
  require(is_aligned(a.x, 16) && is_aligned(a.w, 16), op, "x and w must be 16-byte aligned");
  require(is_aligned(a.norm_weight, 16) && is_aligned(a.norm_bias, 16), op,
          "norm weight and bias must be 16-byte aligned");
  require(is_device_float(y_dtype) && is_device_float(a.x_dtype), op,
          "x and y are F32, F16 or BF16");
  require(!(a.gated && a.activated), op, "gating already activates");
  return {.epilogue = {.y = y,
                       .bias = a.bias,
                       .residual = a.residual,
                       .y_dtype = y_dtype,
                       .bias_dtype = a.bias_dtype,
                       .activated = a.activated,
                       .activation = a.activation},
          .x = a.x,
          .w = a.w,
          .norm_weight = a.norm_weight,
          .norm_bias = a.norm_bias,
          .n = a.n,
          .k = a.k,
          .num_tokens = static_cast<int32_t>(a.num_tokens),
          .norm_eps = a.norm_eps,
          .x_dtype = a.x_dtype,
          .norm = a.norm,
          .gated = a.gated};
}

}  // namespace

void linear_fma(void* y, DType y_dtype, const LinearArgs& args, const LaunchStream& stream) {
  const char* const op = "linear_fma";
  const ProfileRange range(op);
  const Params p = make_params(y, y_dtype, args);
  require(args.num_tokens == 1, op, "one token only");
  const int64_t step = 32 * 4, vectors = p.k / 8;
  // The largest team that leaves at least four fifths of its lanes with work.
  int team = 1;
  for (int wider = 2; wider <= kWarps; wider *= 2) {
    const int64_t padded = (vectors + step * wider - 1) / (step * wider) * step * wider;
    if (vectors * 5 >= padded * 4) team = wider;
  }
  const int64_t padded_vectors = (vectors + step * team - 1) / (step * team) * step * team;
  const bool packed = p.norm == NormKind::kNone && p.x_dtype == args.w_dtype;
  const size_t shared = static_cast<size_t>(padded_vectors) * (packed ? 16 : 32);
  const int64_t groups = (p.n + kWarps / team - 1) / (kWarps / team);
  // Four blocks fit by registers; shared memory (1 KiB of it per block reserved) may allow fewer.
  const int64_t per_sm =
      std::clamp<int64_t>(kSharedKibPerSm * 1024 / static_cast<int64_t>(shared + 1024 + 192), 1, 4);
  const unsigned grid = balanced_grid(groups, stream.num_sms * per_sm);
  dispatch_16bit(args.w_dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(packed ? linear_fma_kernel<T, true> : linear_fma_kernel<T, false>, grid, kThreads,
           shared, stream, p, team);
  });
}

void linear_mma(void* y, DType y_dtype, const LinearArgs& args, const LaunchStream& stream) {
  const ProfileRange range("linear_mma");
  const Params p = make_params(y, y_dtype, args);
  require(args.num_tokens <= kMaxLinearTokens, "linear_mma", "at most 16 tokens");
  require(args.norm == NormKind::kNone && !args.gated, "linear_mma",
          "norm and gating are fused for one token only");
  require(args.x_dtype == args.w_dtype, "linear_mma", "x must have the dtype of w");
  const unsigned grid = balanced_grid((p.n + 15) / 16, stream.num_sms * 2);
  dispatch_16bit(args.w_dtype, "linear_mma", [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (args.num_tokens <= 8) {
      launch(linear_mma_kernel<T, 1>, grid, kThreads, 0, stream, p);
    } else {
      launch(linear_mma_kernel<T, 2>, grid, kThreads, 0, stream, p);
    }
  });
}

void linear(void* y, DType y_dtype, const LinearArgs& args, const LaunchStream& stream) {
  if (args.num_tokens == 1) {
    linear_fma(y, y_dtype, args, stream);
  } else {
    linear_mma(y, y_dtype, args, stream);
  }
}

}  // namespace llmctl::kernels::cuda
