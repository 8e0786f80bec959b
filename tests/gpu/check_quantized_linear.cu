#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/cuda/quantized_linear.h"
#include "kernels/ops.h"
#include "tests/gpu/checker.h"

namespace llmctl::gpu {
namespace {

namespace cuda = kernels::cuda;
namespace reference = kernels::reference;
using kernels::ActivationOp;

struct QuantizedCase {
  int bits;
  int64_t tokens, n, k, group = 0;
  DType x = DType::F16, y = DType::F32;
  bool extras = false;    ///< bias, activation and residual
  bool integers = false;  ///< small integers and scales of one: the result must be exact
};

void check_quantized(const Checker& c, const QuantizedCase& t, uint64_t seed) {
  const cudaStream_t s = c.stream.handle;
  std::vector<float> x_values = random_values(t.tokens * t.k, 1.0F, seed);
  if (t.integers) {
    for (float& v : x_values) v = std::round(v * 3.0F);
  }
  const Tensor x = make_tensor(x_values, t.x, s);
  const int64_t groups = t.group > 0 ? t.k / t.group : 1;
  std::vector<float> scales(static_cast<size_t>(t.n * groups), 1.0F);
  if (!t.integers) {
    const std::vector<float> noise = random_values(t.n * groups, 0.01F, seed + 1);
    for (size_t i = 0; i < scales.size(); ++i) scales[i] = 0.002F + std::fabs(noise[i]);
  }
  // Every value of the type, -128 and -8 included.
  std::vector<uint8_t> q(static_cast<size_t>(t.n * t.k * t.bits / 8));
  std::vector<float> weights(static_cast<size_t>(t.n * t.k));
  uint64_t state = seed * 0x9e3779b97f4a7c15ULL + 1;
  for (size_t i = 0; i < q.size(); ++i) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    q[i] = static_cast<uint8_t>(state >> 56);
  }
  for (int64_t row = 0; row < t.n; ++row) {
    for (int64_t i = 0; i < t.k; ++i) {
      const int64_t at = row * t.k + i;
      const int value = t.bits == 8 ? static_cast<int8_t>(q[static_cast<size_t>(at)])
                                    : ((q[static_cast<size_t>(at / 2)] >> (4 * (at % 2))) & 15) - 8;
      weights[static_cast<size_t>(at)] =
          static_cast<float>(value) *
          scales[static_cast<size_t>(row * groups + (t.group > 0 ? i / t.group : 0))];
    }
  }
  const Tensor bias = random_tensor(t.n, 0.5F, seed + 2, t.x, s);
  const std::vector<float> residual = random_values(t.tokens * t.n, 2.0F, seed + 3);
  std::vector<float> want(static_cast<size_t>(t.tokens * t.n));
  constexpr int64_t kRows = 64;
  parallel_for((t.n + kRows - 1) / kRows, [&](int64_t piece) {
    const int64_t row = piece * kRows, rows = std::min(kRows, t.n - row);
    reference::linear(want.data() + row, x.values.data(), weights.data() + row * t.k, DType::F32,
                      t.extras ? bias.values.data() + row : nullptr, t.tokens, rows, t.k, t.n);
  });
  if (t.extras) {
    reference::activation(want.data(), static_cast<int64_t>(want.size()), ActivationOp::kRelu);
    for (size_t i = 0; i < want.size(); ++i) want[i] += residual[i];
  }
  const Buffer q_device(q.size());
  q_device.upload(q.data(), q.size(), s);
  const Tensor scales_device = make_tensor(scales, DType::F32, s);
  const Tensor residual_device = make_tensor(residual, DType::F32, s);
  const std::string name = "quantized_linear int" + std::to_string(t.bits) + " " + dtype_word(t.x) +
                           " " + std::to_string(t.tokens) + " x " + std::to_string(t.n) + " x " +
                           std::to_string(t.k) + " group " + std::to_string(t.group) + " -> " +
                           dtype_word(t.y) + (t.extras ? " bias relu residual" : "") +
                           (t.integers ? " exact integers" : "");
  c.run(name, t.y, want, t.integers ? 0 : bound_of(t.y), [&](void* y) {
    cuda::quantized_linear(y, t.y,
                           {.x = x.data(),
                            .x_dtype = t.x,
                            .q = q_device.data(),
                            .bits = t.bits,
                            .scales = scales_device.buffer.as<float>(),
                            .group_size = t.group,
                            .bias = t.extras ? bias.data() : nullptr,
                            .residual = t.extras ? residual_device.buffer.as<float>() : nullptr,
                            .num_tokens = t.tokens,
                            .n = t.n,
                            .k = t.k,
                            .activated = t.extras,
                            .activation = ActivationOp::kRelu},
                           c.stream);
  });
}

}  // namespace

void check_quantized_linears(const Checker& c) {
  std::vector<QuantizedCase> cases;
  for (const int bits : {8, 4}) {
    const int64_t group = 512 / bits;
    for (const DType x : {DType::F16, DType::BF16}) {
      cases.push_back({.bits = bits, .tokens = 1, .n = 1, .k = 128 / bits, .x = x});
      cases.push_back({.bits = bits, .tokens = 3, .n = 37, .k = 1056, .x = x, .integers = true});
      cases.push_back({.bits = bits, .tokens = 8, .n = 45, .k = 2080, .x = x, .extras = true});
      cases.push_back({.bits = bits, .tokens = 16, .n = 64, .k = 1024, .group = group, .x = x});
      cases.push_back({.bits = bits,
                       .tokens = 9,
                       .n = 33,
                       .k = 1280,
                       .group = 2 * group,
                       .x = x,
                       .y = x,
                       .extras = true});
      if (c.small) continue;
      cases.push_back({.bits = bits, .tokens = 1, .n = 4096, .k = 4096, .x = x});
      cases.push_back({.bits = bits, .tokens = 1, .n = 4096, .k = 11008, .x = x});
      cases.push_back({.bits = bits, .tokens = 16, .n = 1111, .k = 4096, .group = 128, .x = x});
    }
  }
  uint64_t seed = 70000;
  for (const QuantizedCase& t : cases) check_quantized(c, t, seed += 10);
}

}  // namespace llmctl::gpu
