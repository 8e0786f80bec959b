// Norms over rows: one block per row, the row held in registers between the passes, so it is read
// once. Bound: bytes of x and y; for a handful of rows, latency.
#include "kernels/cuda/norm.h"

#include <algorithm>

#include "kernels/cuda/dispatch.cuh"

namespace llmctl::kernels::cuda {
namespace {

constexpr int kPerThread = 16;
constexpr int kMaxThreads = 1024;

struct Params {
  void* y;
  NormArgs args;
  DType y_dtype;
  bool subtract_mean;
};

/// kWidth elements at a time: 8 when rows and pointers are 16-byte aligned, else 1.
template <int kWidth>
__global__ void __launch_bounds__(kMaxThreads) norm_kernel(const Params p) {
  constexpr int kPieces = kPerThread / kWidth;
  __shared__ float scratch[32];
  const NormArgs& a = p.args;
  const int64_t row_start = blockIdx.x * a.hidden_size;
  const int pieces = static_cast<int>(a.hidden_size / kWidth);
  float e[kPieces][kWidth];
  trigger_dependents();
  wait_for_predecessor();

  float sum = 0.0F;
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const int piece = threadIdx.x + i * blockDim.x;
    const bool inside = piece < pieces;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) e[i][j] = 0.0F;
    if (!inside) continue;
    const int64_t at = row_start / kWidth + piece;
    if constexpr (kWidth == 8) {
      load_8(a.x, a.x_dtype, at, e[i]);
      if (a.residual != nullptr) {
        float r[8];
        load_8(a.residual, DType::F32, at, r);
#pragma unroll
        for (int j = 0; j < 8; ++j) e[i][j] += r[j];
        store_8(a.residual, DType::F32, at, e[i]);
      }
    } else {
      e[i][0] = load_element(a.x, a.x_dtype, at);
      if (a.residual != nullptr) {
        e[i][0] += a.residual[at];
        a.residual[at] = e[i][0];
      }
    }
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum += p.subtract_mean ? e[i][j] : e[i][j] * e[i][j];
  }
  const float inv_count = 1.0F / static_cast<float>(a.hidden_size);
  float mean = 0.0F;
  float variance = block_sum(sum, scratch) * inv_count;
  if (p.subtract_mean) {
    mean = variance;
    sum = 0.0F;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      if (static_cast<int>(threadIdx.x + i * blockDim.x) >= pieces) continue;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) sum += (e[i][j] - mean) * (e[i][j] - mean);
    }
    variance = block_sum(sum, scratch) * inv_count;
  }
  const float scale = 1.0F / sqrtf(variance + a.eps);
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const int piece = threadIdx.x + i * blockDim.x;
    if (piece >= pieces) continue;
    float weight[kWidth], bias[kWidth];
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      weight[j] = 1.0F;
      bias[j] = 0.0F;
    }
    const int64_t at = row_start / kWidth + piece;
    if constexpr (kWidth == 8) {
      if (a.weight != nullptr) load_8(a.weight, a.weight_dtype, piece, weight);
      if (a.bias != nullptr) load_8(a.bias, a.weight_dtype, piece, bias);
    } else {
      if (a.weight != nullptr) weight[0] = load_element(a.weight, a.weight_dtype, piece);
      if (a.bias != nullptr) bias[0] = load_element(a.bias, a.weight_dtype, piece);
    }
#pragma unroll
    for (int j = 0; j < kWidth; ++j) e[i][j] = (e[i][j] - mean) * scale * weight[j] + bias[j];
    if constexpr (kWidth == 8) {
      store_8(p.y, p.y_dtype, at, e[i]);
    } else {
      store_element(p.y, p.y_dtype, at, e[i][0]);
    }
  }
}

void launch_norm(void* y, DType y_dtype, const NormArgs& args, bool subtract_mean,
                 const LaunchStream& stream, const char* op) {
  const ProfileRange range(op);
  require(args.hidden_size > 0 && args.hidden_size <= kMaxNormHiddenSize, op,
          "hidden_size must be 1 .. 16384");
  require(is_device_float(y_dtype) && is_device_float(args.x_dtype) &&
              is_device_float(args.weight_dtype),
          op, "tensors are F32, F16 or BF16");
  require(subtract_mean || args.bias == nullptr, op, "RMSNorm has no bias");
  if (args.num_tokens == 0) return;
  const Params p{.y = y, .args = args, .y_dtype = y_dtype, .subtract_mean = subtract_mean};
  const bool vectors = args.hidden_size % 8 == 0 && is_aligned(y, 16) && is_aligned(args.x, 16) &&
                       is_aligned(args.residual, 16) && is_aligned(args.weight, 16) &&
                       is_aligned(args.bias, 16);
  const int64_t wanted = vectors ? args.hidden_size / 8 : args.hidden_size;
  const auto threads =
      static_cast<unsigned>(std::clamp<int64_t>((wanted + 31) / 32 * 32, 32, kMaxThreads));
  launch(vectors ? norm_kernel<8> : norm_kernel<1>, static_cast<unsigned>(args.num_tokens), threads,
         0, stream, p);
}

}  // namespace

void rms_norm(void* y, DType y_dtype, const NormArgs& args, const LaunchStream& stream) {
  launch_norm(y, y_dtype, args, false, stream, "rms_norm");
}

void layer_norm(void* y, DType y_dtype, const NormArgs& args, const LaunchStream& stream) {
  launch_norm(y, y_dtype, args, true, stream, "layer_norm");
}

}  // namespace llmctl::kernels::cuda
