#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/elementwise.h"
#include "kernels/ops.h"
#include "tests/gpu/checker.h"

namespace llmctl::gpu {

namespace cuda = kernels::cuda;
namespace reference = kernels::reference;
using kernels::ActivationOp;

void check_elementwise(const Checker& c) {
  const cudaStream_t s = c.stream.handle;
  const std::pair<ActivationOp, const char*> ops[] = {{ActivationOp::kRelu, "relu"},
                                                      {ActivationOp::kGelu, "gelu"},
                                                      {ActivationOp::kGeluTanh, "gelu_tanh"},
                                                      {ActivationOp::kSilu, "silu"},
                                                      {ActivationOp::kQuickGelu, "quick_gelu"}};
  uint64_t seed = 40000;
  for (const auto& [op, word] : ops) {
    for (const DType dtype : {DType::F32, DType::F16, DType::BF16}) {
      for (const int64_t n : {int64_t{1003}, int64_t{2048}}) {
        const Tensor x = random_tensor(3 * 2 * n, 3.0F, ++seed, dtype, s);
        std::vector<float> want = x.values;
        reference::activation(want.data(), static_cast<int64_t>(want.size()), op);
        const std::string shape =
            std::string(word) + " " + dtype_word(dtype) + " n " + std::to_string(n);
        c.run("activation " + shape, dtype, want, bound_with_activation(dtype), [&](void* y) {
          cuda::activation(y, x.data(), dtype, static_cast<int64_t>(want.size()), op, c.stream);
        });
        std::vector<float> gated(static_cast<size_t>(3 * n));
        reference::gated_activation(gated.data(), x.values.data(), 3, n, op);
        c.run("gated_activation " + shape, dtype, gated, bound_with_activation(dtype),
              [&](void* y) { cuda::gated_activation(y, x.data(), dtype, 3, n, op, c.stream); });
      }
    }
  }

  for (const DType dtype : {DType::F16, DType::BF16, DType::F32}) {
    for (const int64_t width : {int64_t{33}, int64_t{1024}}) {
      constexpr int64_t kRows = 50, kFirst = 100, kPositions = 9;
      const Tensor table = random_tensor(kRows * width, 1.0F, ++seed, dtype, s);
      const Tensor position_table = random_tensor(kPositions * width, 1.0F, ++seed, dtype, s);
      const std::vector<int32_t> ids = {100, 149, 99, 150, 120, 0, 2147483647};
      const std::vector<int32_t> positions = {0, 8, 3, 1, -1, 2, 4};
      const Buffer ids_device = upload_ints(ids, s), positions_device = upload_ints(positions, s);
      std::vector<float> want;
      for (size_t t = 0; t < ids.size(); ++t) {
        const int64_t row = ids[t] - kFirst;
        const bool inside = row >= 0 && row < kRows && positions[t] >= 0;
        for (int64_t i = 0; i < width; ++i) {
          float v = inside ? table.values[static_cast<size_t>(row * width + i)] * 2.0F : 0.0F;
          if (positions[t] >= 0) {
            v += position_table.values[static_cast<size_t>(positions[t] * width + i)];
          }
          want.push_back(v);
        }
      }
      c.run("embedding " + dtype_word(dtype) + " width " + std::to_string(width), DType::F32, want,
            1e-7, [&](void* y) {
              cuda::embedding(y, DType::F32,
                              {.table = table.data(),
                               .dtype = dtype,
                               .ids = ids_device.as<int32_t>(),
                               .first_row = kFirst,
                               .num_rows = kRows,
                               .position_table = position_table.data(),
                               .positions = positions_device.as<int32_t>(),
                               .num_tokens = static_cast<int64_t>(ids.size()),
                               .width = width,
                               .scale = 2.0F},
                              c.stream);
            });
      const Tensor y = random_tensor(7 * width, 1.0F, ++seed, dtype, s);
      const std::vector<float> x = random_values(7 * width, 1.0F, ++seed);
      std::vector<float> sum = x;
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += y.values[i];
      c.run(
          "add " + dtype_word(dtype) + " width " + std::to_string(width), DType::F32, sum, 1e-7,
          [&](void* to) {
            cuda::add(static_cast<float*>(to), y.data(), dtype, 7 * width, c.stream);
          },
          &x);
      const std::vector<float> bias = random_values(width, 1.0F, ++seed);
      const Tensor bias_device = make_tensor(bias, DType::F32, s);
      std::vector<float> biased = y.values;
      for (size_t i = 0; i < biased.size(); ++i) {
        biased[i] += bias[i % static_cast<size_t>(width)];
      }
      reference::activation(biased.data(), static_cast<int64_t>(biased.size()),
                            kernels::ActivationOp::kGelu);
      c.run("add_bias gelu " + dtype_word(dtype) + " width " + std::to_string(width), dtype, biased,
            bound_with_activation(dtype), [&](void* to) {
              LLMCTL_CUDA_CHECK(
                  cudaMemcpyAsync(to, y.data(), y.raw.size(), cudaMemcpyDeviceToDevice, s));
              cuda::add_bias(to, dtype, bias_device.buffer.as<float>(), 7, width, true,
                             kernels::ActivationOp::kGelu, c.stream);
            });
      // Rounding to nearest, as the host rounds.
      c.run("convert F32 to " + dtype_word(dtype) + " width " + std::to_string(width), dtype,
            make_tensor(x, dtype, s).values, 0, [&](void* to) {
              const Tensor from = make_tensor(x, DType::F32, s);
              cuda::convert(to, dtype, from.data(), DType::F32, 7 * width, c.stream);
              LLMCTL_CUDA_CHECK(cudaStreamSynchronize(s));
            });
      c.run("convert " + dtype_word(dtype) + " to F32 width " + std::to_string(width), DType::F32,
            y.values, 0,
            [&](void* to) { cuda::convert(to, DType::F32, y.data(), dtype, 7 * width, c.stream); });
    }
  }
}

}  // namespace llmctl::gpu
