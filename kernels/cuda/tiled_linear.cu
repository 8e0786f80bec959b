// A block computes 128 tokens x 128 outputs, K in steps of 32 through a ring of kStages tiles in
// shared memory that cp.async fills. Eight warps take 64 x 32 each as 4 x 4 tiles of mma.m16n8k16:
// tokens are the rows of operand A, weight rows the columns of operand B. Bound: flops.
//
// A row of a tile is 64 bytes, four pieces of 16; piece c of row r lies at c ^ (r / 2 % 4), so that
// the eight rows that ldmatrix reads at a time lie in different banks.
#include "kernels/cuda/tiled_linear.h"

#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/mma.cuh"

namespace llmctl::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 128;        // tokens, and outputs
constexpr int kPieces = 4;        // of 16 bytes in a row of a tile: 32 elements
constexpr int kStages = 4;        // tiles in flight
constexpr int kWarpTokens = 64;   // by two rows of warps
constexpr int kWarpOutputs = 32;  // by four columns of warps
constexpr int kStagePieces = 2 * kTile * kPieces;
static_assert(sizeof(float) * kTile * kTile <= sizeof(uint4) * kStages * kStagePieces);

struct Params {
  Epilogue epilogue;
  const uint4* x;
  const uint4* w;
  int64_t num_tokens, n;
  int32_t vectors;  ///< pieces of a row of x and w
};

__device__ __forceinline__ int place_of(int row, int piece) {
  return row * kPieces + (piece ^ ((row >> 1) & 3));
}

template <typename T>
__global__ void __launch_bounds__(kThreads) tiled_linear_kernel(const Params p) {
  LLMCTL_DYNAMIC_SHARED(uint4, tiles);
  trigger_dependents();
  wait_for_predecessor();
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int64_t first_token = static_cast<int64_t>(blockIdx.x) * kTile;
  const int64_t first_output = static_cast<int64_t>(blockIdx.y) * kTile;
  const int steps = (p.vectors + kPieces - 1) / kPieces;

  const auto load = [&](int step) {
    if (step < steps) {
      uint4* const to = tiles + step % kStages * kStagePieces;
#pragma unroll
      for (int i = 0; i < kStagePieces / kThreads; ++i) {
        const int at = threadIdx.x + i * kThreads;
        const bool is_w = at >= kTile * kPieces;
        const int row = at / kPieces % kTile, piece = at % kPieces;
        const int vector = step * kPieces + piece;
        const int64_t global_row = (is_w ? first_output : first_token) + row;
        const bool inside = global_row < (is_w ? p.n : p.num_tokens) && vector < p.vectors;
        const uint4* const from = is_w ? p.w : p.x;
        copy_async_16(to + (is_w ? kTile * kPieces : 0) + place_of(row, piece),
                      inside ? from + global_row * p.vectors + vector : from, inside);
      }
    }
    commit_async();  // an empty group too: they are counted
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) load(i);

  const int warp_token = warp / 4 * kWarpTokens, warp_output = warp % 4 * kWarpOutputs;
  const int matrix = lane >> 3, row_in_matrix = lane & 7;
  float c[4][4][4] = {};
  for (int step = 0; step < steps; ++step) {
    wait_async<kStages - 2>();
    __syncthreads();
    // Of the stage that every warp has left before the barrier.
    load(step + kStages - 1);
    const uint4* const x_tile = tiles + step % kStages * kStagePieces;
    const uint4* const w_tile = x_tile + kTile * kPieces;
#pragma unroll
    for (int k = 0; k < kPieces / 2; ++k) {
      uint32_t a[4][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = warp_token + 16 * i + 8 * (matrix & 1) + row_in_matrix;
        load_matrices(a[i], x_tile + place_of(row, 2 * k + (matrix >> 1)));
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int row = warp_output + 16 * j + 8 * (matrix >> 1) + row_in_matrix;
        load_matrices(b[j], w_tile + place_of(row, 2 * k + (matrix & 1)));
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          mma_16x8x16<T>(c[i][j], a[i][0], a[i][1], a[i][2], a[i][3], b[j / 2][2 * (j % 2)],
                         b[j / 2][2 * (j % 2) + 1]);
        }
      }
    }
  }

  // Through shared memory, so that neighbours write side by side and what follows the product is
  // compiled once. Outputs of eight tokens are spread over the banks.
  wait_async<0>();
  __syncthreads();
  auto* const sums = reinterpret_cast<float*>(tiles);
  const auto sum_at = [](int token, int output) {
    return token * kTile + (output ^ ((token & 7) << 2));
  };
  const int g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sums[sum_at(warp_token + 16 * i + g + 8 * (e >> 1),
                    warp_output + 8 * j + 2 * t + (e & 1))] = c[i][j][e];
      }
    }
  }
  __syncthreads();
#pragma unroll 1
  for (int at = threadIdx.x; at < kTile * kTile; at += kThreads) {
    const int64_t token = first_token + at / kTile, row = first_output + at % kTile;
    if (token >= p.num_tokens || row >= p.n) continue;
    finish(p.epilogue, sums[sum_at(at / kTile, at % kTile)], row, token * p.n + row);
  }
}

}  // namespace

void tiled_linear(void* y, DType y_dtype, const LinearArgs& args, const LaunchStream& stream) {
  const char* const op = "tiled_linear";
  const ProfileRange range(op);
  require(args.k > 0 && args.k % 8 == 0 && args.k / 8 <= INT32_MAX, op,
          "k must be a multiple of 8");
  require(args.n > 0 && args.num_tokens > 0 && args.n <= 65535 * int64_t{kTile}, op,
          "empty product, or more than 8388480 outputs");
  require(args.norm == NormKind::kNone && !args.gated, op, "neither norm nor gating");
  require(args.x_dtype == args.w_dtype, op, "x must have the dtype of w");
  require(is_aligned(args.x, 16) && is_aligned(args.w, 16), op, "x and w must be 16-byte aligned");
  require(is_device_float(y_dtype), op, "y is F32, F16 or BF16");
  const Params p{.epilogue = {.y = y,
                              .bias = args.bias,
                              .residual = args.residual,
                              .y_dtype = y_dtype,
                              .bias_dtype = args.bias_dtype,
                              .activated = args.activated,
                              .activation = args.activation},
                 .x = static_cast<const uint4*>(args.x),
                 .w = static_cast<const uint4*>(args.w),
                 .num_tokens = args.num_tokens,
                 .n = args.n,
                 .vectors = static_cast<int32_t>(args.k / 8)};
  const dim3 grid(static_cast<unsigned>((args.num_tokens + kTile - 1) / kTile),
                  static_cast<unsigned>((args.n + kTile - 1) / kTile));
  const size_t shared = sizeof(uint4) * kStages * kStagePieces;
  dispatch_16bit(args.w_dtype, op, [&](auto tag) {
    launch(tiled_linear_kernel<typename decltype(tag)::type>, grid, kThreads, shared, stream, p);
  });
}

}  // namespace llmctl::kernels::cuda
