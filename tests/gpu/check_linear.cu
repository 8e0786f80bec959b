#include <algorithm>
#include <string>
#include <vector>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/tiled_linear.h"
#include "kernels/ops.h"
#include "tests/gpu/checker.h"

namespace llmctl::gpu {
namespace {

namespace cuda = kernels::cuda;
namespace reference = kernels::reference;
using kernels::ActivationOp;

std::vector<float> reference_linear(const std::vector<float>& x, const Tensor& w,
                                    const std::vector<float>* bias, int64_t tokens, int64_t n,
                                    int64_t k) {
  std::vector<float> y(static_cast<size_t>(tokens * n));
  constexpr int64_t kRows = 64;
  parallel_for((n + kRows - 1) / kRows, [&](int64_t piece) {
    const int64_t row = piece * kRows, rows = std::min(kRows, n - row);
    reference::linear(y.data() + row, x.data(), w.raw.data() + row * k * 2, w.dtype,
                      bias != nullptr ? bias->data() + row : nullptr, tokens, rows, k, n);
  });
  return y;
}

struct LinearCase {
  int64_t tokens, n, k;
  DType w = DType::F16, y = DType::F32;
  bool bias = false, residual = false, activated = false, gated = false;
  cuda::NormKind norm = cuda::NormKind::kNone;
  DType x = DType::F16;
  char kernel = 0;  ///< 0: whatever `linear` picks; else f(ma), m(ma) or t(iled)
};

void check_linear(const Checker& c, const LinearCase& t, uint64_t seed) {
  const cudaStream_t s = c.stream.handle;
  const DType x_dtype = t.x == DType::F32 ? DType::F32 : t.w;
  const int64_t rows = t.gated ? 2 * t.n : t.n;
  const Tensor x = random_tensor(t.tokens * t.k, 1.0F, seed, x_dtype, s);
  const Tensor w = random_tensor(rows * t.k, 0.05F, seed + 1, t.w, s);
  const Tensor bias = random_tensor(rows, 0.5F, seed + 2, t.w, s);
  const std::vector<float> residual = random_values(t.tokens * t.n, 2.0F, seed + 3);
  const Tensor norm_weight = random_tensor(t.k, 0.5F, seed + 4, t.w, s);
  const Tensor norm_bias = random_tensor(t.k, 0.5F, seed + 5, t.w, s);

  std::vector<float> input = x.values;
  if (t.norm == cuda::NormKind::kRmsNorm) {
    reference::rms_norm(input.data(), x.values.data(), norm_weight.values.data(), t.tokens, t.k,
                        1e-5F);
  } else if (t.norm == cuda::NormKind::kLayerNorm) {
    reference::layer_norm(input.data(), x.values.data(), norm_weight.values.data(),
                          norm_bias.values.data(), t.tokens, t.k, 1e-5F);
  }
  std::vector<float> want =
      reference_linear(input, w, t.bias ? &bias.values : nullptr, t.tokens, rows, t.k);
  if (t.activated) {
    reference::activation(want.data(), static_cast<int64_t>(want.size()), ActivationOp::kGeluTanh);
  }
  if (t.gated) {
    std::vector<float> gated(static_cast<size_t>(t.tokens * t.n));
    reference::gated_activation(gated.data(), want.data(), t.tokens, t.n, ActivationOp::kSilu);
    want = gated;
  }
  if (t.residual) {
    for (size_t i = 0; i < want.size(); ++i) want[i] += residual[i];
  }

  cuda::LinearArgs args{.x = x.data(),
                        .x_dtype = x_dtype,
                        .w = w.data(),
                        .w_dtype = t.w,
                        .bias = t.bias ? bias.data() : nullptr,
                        .bias_dtype = t.w,
                        .num_tokens = t.tokens,
                        .n = t.n,
                        .k = t.k,
                        .norm = t.norm,
                        .norm_eps = 1e-5F,
                        .gated = t.gated,
                        .activated = t.activated,
                        .activation = t.gated ? ActivationOp::kSilu : ActivationOp::kGeluTanh};
  if (t.norm != cuda::NormKind::kNone) args.norm_weight = norm_weight.data();
  if (t.norm == cuda::NormKind::kLayerNorm) args.norm_bias = norm_bias.data();
  std::string name = "linear " + dtype_word(t.w) + " " + std::to_string(t.tokens) + " x " +
                     std::to_string(t.n) + " x " + std::to_string(t.k) + " -> " + dtype_word(t.y);
  if (t.x == DType::F32) name += " x f32";
  if (t.norm == cuda::NormKind::kRmsNorm) name += " rms";
  if (t.norm == cuda::NormKind::kLayerNorm) name += " layernorm";
  if (t.bias) name += " bias";
  if (t.activated) name += " gelu_tanh";
  if (t.gated) name += " silu-gated";
  if (t.residual) name += " residual";
  if (t.kernel == 'm') name += " mma";
  if (t.kernel == 'f') name += " fma";
  if (t.kernel == 't') name += " tiled";
  const bool in_place = t.residual && t.y == DType::F32;
  const Tensor residual_copy = make_tensor(residual, DType::F32, s);
  c.run(
      name, t.y, want, t.gated || t.activated ? bound_with_activation(t.y) : bound_of(t.y),
      [&](void* y) {
        if (t.residual) {
          args.residual =
              in_place ? static_cast<const float*>(y) : residual_copy.buffer.as<float>();
        }
        if (t.kernel == 'm') {
          cuda::linear_mma(y, t.y, args, c.stream);
        } else if (t.kernel == 'f') {
          cuda::linear_fma(y, t.y, args, c.stream);
        } else if (t.kernel == 't') {
          cuda::tiled_linear(y, t.y, args, c.stream);
        } else {
          cuda::linear(y, t.y, args, c.stream);
        }
      },
      in_place ? &residual : nullptr);
}

}  // namespace

void check_linears(const Checker& c) {
  using cuda::NormKind;
  std::vector<LinearCase> cases;
  for (const DType w : {DType::F16, DType::BF16}) {
    for (const char kernel : {'f', 'm'}) {
      cases.push_back({.tokens = 1, .n = 1, .k = 8, .w = w, .kernel = kernel});
      cases.push_back({.tokens = 1, .n = 37, .k = 1000, .w = w, .kernel = kernel});
      cases.push_back({.tokens = 1, .n = 133, .k = 2056, .w = w, .kernel = kernel});
      cases.push_back({.tokens = 1, .n = 128, .k = 1024, .w = w, .y = w, .kernel = kernel});
    }
    for (const int64_t tokens : {2, 7, 8, 9, 15, 16}) {
      cases.push_back({.tokens = tokens, .n = 45, .k = 1032, .w = w});
      cases.push_back({.tokens = tokens, .n = 64, .k = 512, .w = w, .y = w, .bias = true});
    }
    for (const NormKind norm : {NormKind::kRmsNorm, NormKind::kLayerNorm}) {
      cases.push_back({.tokens = 1,
                       .n = 64,
                       .k = 520,
                       .w = w,
                       .y = w,
                       .bias = true,
                       .gated = true,
                       .norm = norm,
                       .x = DType::F32,
                       .kernel = 'f'});
      cases.push_back(
          {.tokens = 1, .n = 67, .k = 1032, .w = w, .bias = true, .norm = norm, .x = DType::F32});
      cases.push_back({.tokens = 1,
                       .n = 64,
                       .k = 520,
                       .w = w,
                       .y = w,
                       .bias = true,
                       .gated = true,
                       .norm = norm,
                       .x = DType::F32});
    }
    for (const int64_t tokens : {1, 17, 128, 131}) {
      cases.push_back({.tokens = tokens, .n = 150, .k = 200, .w = w, .kernel = 't'});
    }
    cases.push_back({.tokens = 40, .n = 128, .k = 8, .w = w, .y = w, .kernel = 't'});
    cases.push_back({.tokens = 70,
                     .n = 257,
                     .k = 320,
                     .w = w,
                     .y = w,
                     .bias = true,
                     .activated = true,
                     .kernel = 't'});
    cases.push_back(
        {.tokens = 33, .n = 90, .k = 1032, .w = w, .bias = true, .residual = true, .kernel = 't'});
    cases.push_back({.tokens = 1, .n = 65, .k = 264, .w = w, .residual = true});
    cases.push_back({.tokens = 1,
                     .n = 65,
                     .k = 264,
                     .w = w,
                     .y = w,
                     .bias = true,
                     .residual = true,
                     .activated = true});
    cases.push_back({.tokens = 5, .n = 65, .k = 264, .w = w, .bias = true, .residual = true});
    cases.push_back({.tokens = 13, .n = 65, .k = 264, .w = w, .bias = true, .activated = true});
  }
  if (!c.small) {
    for (const DType w : {DType::F16, DType::BF16}) {
      for (const char kernel : {'f', 'm'}) {
        cases.push_back({.tokens = 1, .n = 4096, .k = 4096, .w = w, .kernel = kernel});
        cases.push_back({.tokens = 1, .n = 11003, .k = 4096, .w = w, .kernel = kernel});
        cases.push_back({.tokens = 1, .n = 4096, .k = 11008, .w = w, .kernel = kernel});
      }
      cases.push_back({.tokens = 1, .n = 300, .k = 57344, .w = w});
      cases.push_back({.tokens = 1, .n = 300, .k = 20008, .w = w});
      cases.push_back({.tokens = 1, .n = 301, .k = 5120, .w = w});
      cases.push_back({.tokens = 1,
                       .n = 11008,
                       .k = 4096,
                       .w = w,
                       .y = w,
                       .gated = true,
                       .norm = NormKind::kRmsNorm,
                       .x = DType::F32});
      cases.push_back({.tokens = 16, .n = 4096, .k = 11008, .w = w});
      cases.push_back({.tokens = 4, .n = 11003, .k = 4096, .w = w, .y = w});
      cases.push_back({.tokens = 512, .n = 4096, .k = 11008, .w = w, .kernel = 't'});
      cases.push_back({.tokens = 300, .n = 11003, .k = 4096, .w = w, .y = w, .kernel = 't'});
    }
    cases.push_back({.tokens = 1, .n = 50304, .k = 1024});
  }
  uint64_t seed = 100;
  for (const LinearCase& t : cases) check_linear(c, t, seed += 10);

  // The result of one token must not depend on its neighbours.
  const cudaStream_t s = c.stream.handle;
  const int64_t n = 129, k = 520;
  const Tensor x = random_tensor(16 * k, 1.0F, 7, DType::BF16, s);
  const Tensor w = random_tensor(n * k, 0.1F, 8, DType::BF16, s);
  const auto rows_of = [&](int64_t tokens) {
    const Buffer y(static_cast<size_t>(tokens * n) * 4);
    y.poison(s);
    cuda::linear_mma(y.data(), DType::F32,
                     {.x = x.data(),
                      .x_dtype = DType::BF16,
                      .w = w.data(),
                      .w_dtype = DType::BF16,
                      .num_tokens = tokens,
                      .n = n,
                      .k = k},
                     c.stream);
    return y.download(s);
  };
  const std::vector<uint8_t> sixteen = rows_of(16);
  bool same = true;
  for (int64_t tokens = 1; tokens < 16; ++tokens) {
    const std::vector<uint8_t> fewer = rows_of(tokens);
    same = same && std::equal(fewer.begin(), fewer.end(), sixteen.begin());
  }
  c.report.check_true("linear mma: a token's bits are the same in batches of 1 to 16", same);
}

}  // namespace llmctl::gpu
