// One pass over the data, eight elements per thread where alignment allows. Bound: bytes.
#include "kernels/cuda/elementwise.h"

#include <algorithm>

#include "kernels/cuda/dispatch.cuh"

namespace llmctl::kernels::cuda {
namespace {

constexpr int kThreads = 256;

/// Loads and stores of kWidth elements at index i, counted in such pieces.
template <int kWidth>
__device__ __forceinline__ void load_piece(const void* p, DType dtype, int64_t i,
                                           float (&e)[kWidth]) {
  if constexpr (kWidth == 8) {
    load_8(p, dtype, i, e);
  } else {
    e[0] = load_element(p, dtype, i);
  }
}
template <int kWidth>
__device__ __forceinline__ void store_piece(void* p, DType dtype, int64_t i,
                                            const float (&e)[kWidth]) {
  if constexpr (kWidth == 8) {
    store_8(p, dtype, i, e);
  } else {
    store_element(p, dtype, i, e[0]);
  }
}

template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    embedding_kernel(void* y, DType y_dtype, const EmbeddingArgs a) {
  trigger_dependents();
  wait_for_predecessor();
  const int64_t pieces = a.width / kWidth;
  const int64_t piece = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t token = blockIdx.y;
  if (piece >= pieces) return;
  const int64_t row = a.ids[token] - a.first_row;
  const int32_t position = a.positions != nullptr ? a.positions[token] : 0;
  float e[kWidth] = {};
  if (row >= 0 && row < a.num_rows && position >= 0) {
    load_piece<kWidth>(a.table, a.dtype, row * pieces + piece, e);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) e[i] *= a.scale;
  }
  if (a.position_table != nullptr && position >= 0) {
    float p[kWidth];
    load_piece<kWidth>(a.position_table, a.dtype, position * pieces + piece, p);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) e[i] += p[i];
  }
  store_piece<kWidth>(y, y_dtype, token * pieces + piece, e);
}

/// Gated: x holds rows of gate and up, `n` elements each. Otherwise n == count and rows == 1.
template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    activation_kernel(void* y, const void* x, DType dtype, int64_t n, bool gated, ActivationOp op) {
  trigger_dependents();
  wait_for_predecessor();
  const int64_t pieces = n / kWidth;
  const int64_t row = blockIdx.y;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < pieces;
       i += stride) {
    float e[kWidth], up[kWidth];
    load_piece<kWidth>(x, dtype, (gated ? 2 * row * pieces : 0) + i, e);
    if (gated) load_piece<kWidth>(x, dtype, (2 * row + 1) * pieces + i, up);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      e[j] = activate(e[j], op);
      if (gated) e[j] *= up[j];
    }
    store_piece<kWidth>(y, dtype, row * pieces + i, e);
  }
}

template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    add_kernel(float* x, const void* y, DType y_dtype, int64_t pieces) {
  trigger_dependents();
  wait_for_predecessor();
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < pieces;
       i += stride) {
    float a[kWidth], b[kWidth];
    load_piece<kWidth>(x, DType::F32, i, a);
    load_piece<kWidth>(y, y_dtype, i, b);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) a[j] += b[j];
    store_piece<kWidth>(x, DType::F32, i, a);
  }
}

template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    add_bias_kernel(void* y, DType dtype, const float* bias, int64_t n, bool activated,
                    ActivationOp op) {
  trigger_dependents();
  wait_for_predecessor();
  const int64_t pieces = n / kWidth;
  const int64_t row = blockIdx.y;
  const int64_t piece = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (piece >= pieces) return;
  float e[kWidth], b[kWidth] = {};
  load_piece<kWidth>(y, dtype, row * pieces + piece, e);
  if (bias != nullptr) load_piece<kWidth>(bias, DType::F32, piece, b);
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    e[j] += b[j];
    if (activated) e[j] = activate(e[j], op);
  }
  store_piece<kWidth>(y, dtype, row * pieces + piece, e);
}

template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    convert_kernel(void* y, DType y_dtype, const void* x, DType x_dtype, int64_t pieces) {
  trigger_dependents();
  wait_for_predecessor();
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < pieces;
       i += stride) {
    float e[kWidth];
    load_piece<kWidth>(x, x_dtype, i, e);
    store_piece<kWidth>(y, y_dtype, i, e);
  }
}

unsigned blocks_for(int64_t pieces, int64_t at_most) {
  return static_cast<unsigned>(std::clamp<int64_t>((pieces + kThreads - 1) / kThreads, 1, at_most));
}

}  // namespace

void embedding(void* y, DType y_dtype, const EmbeddingArgs& args, const LaunchStream& stream) {
  const char* const op = "embedding";
  const ProfileRange range(op);
  require(is_device_float(y_dtype) && is_device_float(args.dtype), op,
          "tensors are F32, F16 or BF16");
  require(args.num_tokens <= 65535, op, "at most 65535 tokens per call");
  if (args.num_tokens == 0) return;
  const bool vectors = args.width % 8 == 0 && is_aligned(y, 16) && is_aligned(args.table, 16) &&
                       is_aligned(args.position_table, 16);
  const int64_t pieces = vectors ? args.width / 8 : args.width;
  const dim3 grid(blocks_for(pieces, INT32_MAX), static_cast<unsigned>(args.num_tokens));
  launch(vectors ? embedding_kernel<8> : embedding_kernel<1>, grid, kThreads, 0, stream, y, y_dtype,
         args);
}

void activation(void* y, const void* x, DType dtype, int64_t count, ActivationOp op,
                const LaunchStream& stream) {
  const ProfileRange range("activation");
  require(is_device_float(dtype), "activation", "tensors are F32, F16 or BF16");
  if (count == 0) return;
  const bool vectors = count % 8 == 0 && is_aligned(y, 16) && is_aligned(x, 16);
  const unsigned grid = blocks_for(vectors ? count / 8 : count, stream.num_sms * 16);
  launch(vectors ? activation_kernel<8> : activation_kernel<1>, grid, kThreads, 0, stream, y, x,
         dtype, count, false, op);
}

void gated_activation(void* y, const void* gate_up, DType dtype, int64_t num_tokens, int64_t n,
                      ActivationOp op, const LaunchStream& stream) {
  const ProfileRange range("gated_activation");
  require(is_device_float(dtype), "gated_activation", "tensors are F32, F16 or BF16");
  require(num_tokens <= 65535, "gated_activation", "at most 65535 tokens per call");
  if (num_tokens == 0 || n == 0) return;
  const bool vectors = n % 8 == 0 && is_aligned(y, 16) && is_aligned(gate_up, 16);
  const dim3 grid(blocks_for(vectors ? n / 8 : n, INT32_MAX), static_cast<unsigned>(num_tokens));
  launch(vectors ? activation_kernel<8> : activation_kernel<1>, grid, kThreads, 0, stream, y,
         gate_up, dtype, n, true, op);
}

void add(float* x, const void* y, DType y_dtype, int64_t count, const LaunchStream& stream) {
  const ProfileRange range("add");
  require(is_device_float(y_dtype), "add", "tensors are F32, F16 or BF16");
  if (count == 0) return;
  const bool vectors = count % 8 == 0 && is_aligned(y, 16) && is_aligned(x, 16);
  const int64_t pieces = vectors ? count / 8 : count;
  launch(vectors ? add_kernel<8> : add_kernel<1>, blocks_for(pieces, stream.num_sms * 16), kThreads,
         0, stream, x, y, y_dtype, pieces);
}

void add_bias(void* y, DType dtype, const float* bias, int64_t num_tokens, int64_t n,
              bool activated, ActivationOp op, const LaunchStream& stream) {
  const ProfileRange range("add_bias");
  require(is_device_float(dtype), "add_bias", "tensors are F32, F16 or BF16");
  require(num_tokens <= 65535, "add_bias", "at most 65535 tokens per call");
  if (num_tokens == 0 || n == 0 || (bias == nullptr && !activated)) return;
  const bool vectors = n % 8 == 0 && is_aligned(y, 16) && is_aligned(bias, 16);
  const dim3 grid(blocks_for(vectors ? n / 8 : n, INT32_MAX), static_cast<unsigned>(num_tokens));
  launch(vectors ? add_bias_kernel<8> : add_bias_kernel<1>, grid, kThreads, 0, stream, y, dtype,
         bias, n, activated, op);
}

void convert(void* y, DType y_dtype, const void* x, DType x_dtype, int64_t count,
             const LaunchStream& stream) {
  const ProfileRange range("convert");
  require(is_device_float(y_dtype) && is_device_float(x_dtype), "convert",
          "tensors are F32, F16 or BF16");
  if (count == 0) return;
  const bool vectors = count % 8 == 0 && is_aligned(y, 16) && is_aligned(x, 16);
  const int64_t pieces = vectors ? count / 8 : count;
  launch(vectors ? convert_kernel<8> : convert_kernel<1>, blocks_for(pieces, stream.num_sms * 16),
         kThreads, 0, stream, y, y_dtype, x, x_dtype, pieces);
}

}  // namespace llmctl::kernels::cuda
