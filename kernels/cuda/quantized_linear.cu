// Weight-only quantised products of few tokens. Bound: bytes of q.
//
// As linear_mma_kernel: 16 weight rows are operand A of mma.m16n8k16, eight tokens operand B, K is
// split over the warps of a block. A lane's 16 bytes of a row hold 16 (INT8) or 32 (INT4)
// consecutive k; each 32-bit word of them feeds one (INT8) or two (INT4) mma steps, with x loaded
// in the same order. Unpacking puts the integer's bits behind the exponent of a power of two and
// subtracts it:
//   INT8 -> F16   1024 + (q + 128), as 0x64xx, minus 1152
//   INT8 -> BF16  2^23 + (q + 128) as F32, minus 8388736, packed: bf16 has too few bits for the
//   above INT4 -> F16   0x6400 | u = 1024 + u, minus 1032; the high nibble as 1024 + 16 u, times
//   1/16, minus 72 INT4 -> BF16  0x4300 | u = 128 + u, minus 136
// all exact. Sources of the technique: FasterTransformer interleaved_numeric_conversion.h, Marlin.
#include "kernels/cuda/quantized_linear.h"

#include <algorithm>

#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/mma.cuh"

namespace llmctl::kernels::cuda {
namespace {

constexpr int kThreads = kMmaThreads;
constexpr int kWarps = kMmaWarps;
constexpr int kChunks = 4;  // 16-byte pieces of a row per lane and step

struct Params {
  Epilogue epilogue;
  const uint4* x;
  const uint4* q;
  const float* scales;
  int64_t n;
  int32_t vectors;            ///< 16-byte pieces of a row
  int32_t vectors_per_group;  ///< 0: one scale per row
  int32_t num_tokens;
};

__device__ __forceinline__ uint32_t bits_of(const __half2& v) {
  return reinterpret_cast<const uint32_t&>(v);
}
__device__ __forceinline__ __half2 half2_of(uint32_t v) {
  return reinterpret_cast<const __half2&>(v);
}
__device__ __forceinline__ uint32_t bits_of(const __nv_bfloat162& v) {
  return reinterpret_cast<const uint32_t&>(v);
}
__device__ __forceinline__ __nv_bfloat162 bfloat162_of(uint32_t v) {
  return reinterpret_cast<const __nv_bfloat162&>(v);
}

/// Four INT8 to pairs (0, 1) and (2, 3).
template <typename T>
__device__ __forceinline__ void unpack_int8(uint32_t word, uint32_t (&pairs)[2]);
template <>
__device__ __forceinline__ void unpack_int8<Half>(uint32_t word, uint32_t (&pairs)[2]) {
  const uint32_t unsigned_bytes = word ^ 0x80808080U;
  const __half2 offset = half2_of(0x64806480U);
  pairs[0] = bits_of(__hsub2(half2_of(__byte_perm(unsigned_bytes, 0x64646464U, 0x4140)), offset));
  pairs[1] = bits_of(__hsub2(half2_of(__byte_perm(unsigned_bytes, 0x64646464U, 0x4342)), offset));
}
template <>
__device__ __forceinline__ void unpack_int8<Bfloat16>(uint32_t word, uint32_t (&pairs)[2]) {
  const uint32_t unsigned_bytes = word ^ 0x80808080U;
  float e[4];
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) {
    e[i] = __uint_as_float(__byte_perm(unsigned_bytes, 0x4B000000U, 0x7540 + i)) - 8388736.0F;
  }
  pairs[0] = pack2<Bfloat16>(e[0], e[1]);
  pairs[1] = pack2<Bfloat16>(e[2], e[3]);
}

/// Eight INT4 to pairs (0, 4), (1, 5), (2, 6), (3, 7).
template <typename T>
__device__ __forceinline__ void unpack_int4(uint32_t word, uint32_t (&pairs)[4]);
template <>
__device__ __forceinline__ void unpack_int4<Half>(uint32_t word, uint32_t (&pairs)[4]) {
  const __half2 low_offset = half2_of(0x64086408U), sixteenth = half2_of(0x2c002c00U),
                high_offset = half2_of(0xd480d480U);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t shifted = word >> (8 * i);
    pairs[2 * i] = bits_of(__hsub2(half2_of((shifted & 0x000f000fU) | 0x64006400U), low_offset));
    pairs[2 * i + 1] =
        bits_of(__hfma2(half2_of((shifted & 0x00f000f0U) | 0x64006400U), sixteenth, high_offset));
  }
}
template <>
__device__ __forceinline__ void unpack_int4<Bfloat16>(uint32_t word, uint32_t (&pairs)[4]) {
  const __nv_bfloat162 offset = bfloat162_of(0x43084308U);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    pairs[i] =
        bits_of(__hsub2(bfloat162_of(((word >> (4 * i)) & 0x000f000fU) | 0x43004300U), offset));
  }
}

/// 16-byte pieces of x that meet one 16-byte piece of a row.
template <int kBits>
constexpr int kXPerVector = 16 / kBits;

/// c += the products of one 16-byte piece of rows g and g+8 with the same k of token g.
template <typename T, int kBits>
__device__ __forceinline__ void multiply_piece(float (&c)[4], const uint4& lo, const uint4& hi,
                                               const uint4 (&x)[kXPerVector<kBits>]) {
  const uint32_t low[4] = {lo.x, lo.y, lo.z, lo.w}, high[4] = {hi.x, hi.y, hi.z, hi.w};
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    if constexpr (kBits == 8) {
      uint32_t a[2], b[2];
      unpack_int8<T>(low[word], a);
      unpack_int8<T>(high[word], b);
      const uint4& v = x[word / 2];  // eight k; this word's four are a half of it
      mma_16x8x16<T>(c, a[0], b[0], a[1], b[1], word % 2 == 0 ? v.x : v.z,
                     word % 2 == 0 ? v.y : v.w);
    } else {
      uint32_t a[4], b[4];
      unpack_int4<T>(low[word], a);
      unpack_int4<T>(high[word], b);
      const uint4& v = x[word];
      mma_16x8x16<T>(c, a[0], b[0], a[1], b[1], __byte_perm(v.x, v.z, 0x5410),
                     __byte_perm(v.x, v.z, 0x7632));
      mma_16x8x16<T>(c, a[2], b[2], a[3], b[3], __byte_perm(v.y, v.w, 0x5410),
                     __byte_perm(v.y, v.w, 0x7632));
    }
  }
}

/// kTiles tiles of eight tokens.
template <typename T, int kBits, int kTiles>
__global__ void __launch_bounds__(kThreads, 2) quantized_linear_kernel(const Params p) {
  constexpr int kXVectors = kXPerVector<kBits>;
  __shared__ WarpSums<kTiles> partial[2];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int g = lane >> 2, t = lane & 3;
  // Two neighbouring pieces of four lanes make 128 bytes of a row; the warps take such pairs in
  // turn.
  constexpr int kBlockVectors = kWarps * 8;
  const int steps =
      (p.vectors + kBlockVectors * (kChunks / 2) - 1) / (kBlockVectors * (kChunks / 2));
  const int64_t tiles = (p.n + 15) / 16;
  const int groups = p.vectors_per_group > 0 ? p.vectors / p.vectors_per_group : 1;

  const auto vector_of = [&](int step, int chunk) {
    return (step * (kChunks / 2) + chunk / 2) * kBlockVectors + warp * 8 + (chunk & 1) * 4 + t;
  };
  const auto row_of = [&](int64_t tile, int half) {
    return min(tile * 16 + g + 8 * half, p.n - 1);
  };
  const auto load = [&](uint4(&to)[kChunks][2], int64_t tile, int step) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint4* const from = p.q + row_of(tile, h) * p.vectors;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const int v = vector_of(step, c);
        to[c][h] = make_uint4(0, 0, 0, 0);  // x is zero there: any weight will do
        if (v < p.vectors) to[c][h] = load_streaming(from + v);
      }
    }
  };

  uint4 current[kChunks][2], next[kChunks][2];
  int64_t tile = blockIdx.x;
  int step = 0, buffer = 0;
  trigger_dependents();
  load(current, tile, 0);
  wait_for_predecessor();

  float sum[kTiles][4] = {};
  while (true) {
    const bool last_step = step + 1 == steps;
    const int64_t next_tile = last_step ? tile + gridDim.x : tile;
    const int next_step = last_step ? 0 : step + 1;
    const bool more = next_tile < tiles;
    if (more) load(next, next_tile, next_step);
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int v = vector_of(step, c);
      // A piece of four lanes lies in one group, so its sum has one scale per row.
      float scale[2] = {1.0F, 1.0F};
      if (p.vectors_per_group > 0 && v < p.vectors) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          scale[h] = __ldg(p.scales + row_of(tile, h) * groups + v / p.vectors_per_group);
        }
      }
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const int token = 8 * j + g;
        uint4 x[kXVectors];
#pragma unroll
        for (int i = 0; i < kXVectors; ++i) {
          x[i] = make_uint4(0, 0, 0, 0);
          if (token < p.num_tokens && v < p.vectors) {
            x[i] = p.x[(static_cast<int64_t>(token) * p.vectors + v) * kXVectors + i];
          }
        }
        float product[4] = {};
        multiply_piece<T, kBits>(product, current[c][0], current[c][1], x);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[j][i] += scale[i >> 1] * product[i];
      }
    }
    if (last_step) {
      sum_over_warps<kTiles>(partial[buffer], sum, [&](float value, int token, int row_in_tile) {
        const int64_t row = tile * 16 + row_in_tile;
        if (token < p.num_tokens && row < p.n) {
          if (p.vectors_per_group == 0) value *= p.scales[row];
          finish(p.epilogue, value, row, token * p.n + row);
        }
      });
      buffer ^= 1;
    }
    if (!more) break;
    tile = next_tile;
    step = next_step;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      current[c][0] = next[c][0];
      current[c][1] = next[c][1];
    }
  }
}

}  // namespace

void quantized_linear(void* y, DType y_dtype, const QuantizedLinearArgs& args,
                      const LaunchStream& stream) {
  const char* const op = "quantized_linear";
  const ProfileRange range(op);
  require(args.bits == 4 || args.bits == 8, op, "4 or 8 bits");
  const int64_t per_vector = 128 / args.bits;
  require(args.n > 0 && args.k > 0 && args.k % per_vector == 0, op,
          "k must be a multiple of 16 (INT8) or 32 (INT4)");
  require(args.num_tokens >= 1 && args.num_tokens <= 16, op, "1 .. 16 tokens");
  require(args.group_size >= 0 &&
              (args.group_size == 0 ||
               (args.group_size % (4 * per_vector) == 0 && args.k % args.group_size == 0)),
          op, "group_size must be a multiple of 64 (INT8) or 128 (INT4) that divides k");
  require(is_aligned(args.x, 16) && is_aligned(args.q, 16), op, "x and q must be 16-byte aligned");
  require(is_device_float(y_dtype), op, "y is F32, F16 or BF16");
  const Params p{.epilogue = {.y = y,
                              .bias = args.bias,
                              .residual = args.residual,
                              .y_dtype = y_dtype,
                              .bias_dtype = args.x_dtype,
                              .activated = args.activated,
                              .activation = args.activation},
                 .x = static_cast<const uint4*>(args.x),
                 .q = static_cast<const uint4*>(args.q),
                 .scales = args.scales,
                 .n = args.n,
                 .vectors = static_cast<int32_t>(args.k / per_vector),
                 .vectors_per_group = static_cast<int32_t>(args.group_size / per_vector),
                 .num_tokens = static_cast<int32_t>(args.num_tokens)};
  const unsigned grid = balanced_grid((args.n + 15) / 16, stream.num_sms * 2);
  dispatch_16bit(args.x_dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const bool one_tile = args.num_tokens <= 8;
    const auto kernel =
        args.bits == 8
            ? (one_tile ? quantized_linear_kernel<T, 8, 1> : quantized_linear_kernel<T, 8, 2>)
            : (one_tile ? quantized_linear_kernel<T, 4, 1> : quantized_linear_kernel<T, 4, 2>);
    launch(kernel, grid, kThreads, 0, stream, p);
  });
}

}  // namespace llmctl::kernels::cuda
