// Every kernel held to the F64 reference of the CPU on the same stored inputs. Outputs are poisoned
// with NaN before each run, every case runs twice and must give the same bits.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>

#include "kernels/cuda/argmax.h"
#include "kernels/cuda/decode_attention.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/quantized_linear.h"
#include "kernels/cuda/rotary_kv.h"
#include "kernels/ops.h"
#include "tests/gpu/harness.h"

namespace llmctl::gpu {
namespace {

namespace cuda = kernels::cuda;
namespace reference = kernels::reference;
using cuda::LaunchStream;
using kernels::ActivationOp;

/// Largest norm(out - ref) / norm(ref), by the dtype the result was stored in.
double bound_of(DType dtype) {
  return dtype == DType::F32 ? 1e-5 : dtype == DType::F16 ? 6e-4 : 5e-3;
}
/// The special functions of the device are good to some 2 units in the last place of F32.
double bound_with_activation(DType dtype) { return dtype == DType::F32 ? 2e-5 : bound_of(dtype); }

struct Checker {
  Report& report;
  const LaunchStream& stream;
  bool small;

  /// Runs `launch` twice into poisoned memory and compares with `want`; then checks that nothing
  /// outside the result was written.
  void run(const std::string& name, DType dtype, const std::vector<float>& want, double bound,
           const std::function<void(void*)>& launch,
           const std::vector<float>* initial = nullptr) const {
    constexpr size_t kGuard = 256;
    const size_t bytes = want.size() * dtype_bytes(dtype);
    const Buffer out(bytes + 2 * kGuard);
    std::vector<uint8_t> first;
    for (int i = 0; i < 2; ++i) {
      out.poison(stream.handle);
      char* const data = out.as<char>() + kGuard;
      if (initial != nullptr) {
        LLMCTL_CUDA_CHECK(
            cudaMemcpyAsync(data, initial->data(), bytes, cudaMemcpyHostToDevice, stream.handle));
      }
      launch(data);
      std::vector<uint8_t> all = out.download(stream.handle);
      if (i == 0) {
        first = std::move(all);
      } else if (all != first) {
        report.check_true(name + ": same bits twice", false);
      }
    }
    const auto poisoned = [](uint8_t b) { return b == 0xff; };
    if (!std::all_of(first.begin(), first.begin() + kGuard, poisoned) ||
        !std::all_of(first.end() - kGuard, first.end(), poisoned)) {
      report.check_true(name + ": writes only its result", false);
    }
    const std::vector<uint8_t> middle(first.begin() + kGuard, first.end() - kGuard);
    report.check(name, relative_error(widen(middle, dtype), want), bound);
  }
};

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

std::string dtype_word(DType d) { return std::string(dtype_name(d)); }

struct LinearCase {
  int64_t tokens, n, k;
  DType w = DType::F16, y = DType::F32;
  bool bias = false, residual = false, activated = false, gated = false;
  cuda::NormKind norm = cuda::NormKind::kNone;
  DType x = DType::F16;
  char kernel = 0;  ///< 0: whatever `linear` picks; else f(ma) or m(ma)
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
        } else {
          cuda::linear(y, t.y, args, c.stream);
        }
      },
      in_place ? &residual : nullptr);
}

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

void check_norms(const Checker& c) {
  const cudaStream_t s = c.stream.handle;
  struct Case {
    int64_t tokens, hidden;
    DType x, y;
    bool residual, layer;
  };
  std::vector<Case> cases;
  for (const bool layer : {false, true}) {
    cases.push_back({1, 1, DType::F32, DType::F32, false, layer});
    cases.push_back({3, 8, DType::F32, DType::F32, false, layer});
    cases.push_back({2, 1023, DType::F32, DType::F32, true, layer});
    cases.push_back({5, 1024, DType::F16, DType::F16, false, layer});
    cases.push_back({5, 1000, DType::BF16, DType::BF16, true, layer});
    cases.push_back({1, 4097, DType::F16, DType::F32, false, layer});
    cases.push_back({2, 12288, DType::F32, DType::F16, true, layer});
    cases.push_back({1, 16384, DType::BF16, DType::F32, false, layer});
    cases.push_back({1, 16383, DType::BF16, DType::F32, false, layer});
  }
  uint64_t seed = 9000;
  for (const Case& t : cases) {
    seed += 10;
    const DType w_dtype = t.x == DType::F32 ? DType::F16 : t.x;
    std::vector<float> raw = random_values(t.tokens * t.hidden, 1.0F, seed);
    for (float& v : raw) v += 3.0F;  // a mean far from zero, which the two passes must survive
    const Tensor x = make_tensor(raw, t.x, s);
    const Tensor weight = random_tensor(t.hidden, 1.0F, seed + 1, w_dtype, s);
    const Tensor bias = random_tensor(t.hidden, 1.0F, seed + 2, w_dtype, s);
    const std::vector<float> residual = random_values(t.tokens * t.hidden, 2.0F, seed + 3);
    const Tensor residual_device = make_tensor(residual, DType::F32, s);
    std::vector<float> input = x.values;
    if (t.residual) {
      for (size_t i = 0; i < input.size(); ++i) input[i] += residual[i];
    }
    std::vector<float> want(input.size());
    if (t.layer) {
      reference::layer_norm(want.data(), input.data(), weight.values.data(), bias.values.data(),
                            t.tokens, t.hidden, 1e-5F);
    } else {
      reference::rms_norm(want.data(), input.data(), weight.values.data(), t.tokens, t.hidden,
                          1e-5F);
    }
    const std::string name = std::string(t.layer ? "layer_norm " : "rms_norm ") +
                             std::to_string(t.tokens) + " x " + std::to_string(t.hidden) + " " +
                             dtype_word(t.x) + " -> " + dtype_word(t.y) +
                             (t.residual ? " residual" : "");
    const auto launch = [&](void* y) {
      residual_device.buffer.upload(residual.data(), residual.size() * 4, s);
      const cuda::NormArgs args{
          .x = x.data(),
          .x_dtype = t.x,
          .residual = t.residual ? residual_device.buffer.as<float>() : nullptr,
          .weight = weight.data(),
          .bias = t.layer ? bias.data() : nullptr,
          .weight_dtype = w_dtype,
          .num_tokens = t.tokens,
          .hidden_size = t.hidden,
          .eps = 1e-5F};
      t.layer ? cuda::layer_norm(y, t.y, args, c.stream) : cuda::rms_norm(y, t.y, args, c.stream);
    };
    // One element minus its own mean is nothing but the bias: absolute, not relative, precision.
    c.run(name, t.y, want, bound_of(t.y), launch);
    if (t.residual) {
      c.report.check(name + ": the sum is stored",
                     relative_error(widen(residual_device.buffer.download(s), DType::F32), input),
                     1e-7);
    }
  }
}

/// A block table that uses pages in a scattered order, some far into the pool.
std::vector<int32_t> scattered_tables(int64_t sequences, int64_t pages_each, int32_t num_pages) {
  std::vector<int32_t> tables(static_cast<size_t>(sequences * pages_each));
  for (size_t i = 0; i < tables.size(); ++i) {
    tables[i] = static_cast<int32_t>((i * 7 + 3) % static_cast<size_t>(num_pages));
  }
  return tables;
}

void check_rotary(const Checker& c) {
  using cuda::RotaryPairing;
  const cudaStream_t s = c.stream.handle;
  struct Case {
    RotaryPairing pairing;
    int32_t heads, kv_heads, head_dim, rotary_dim, page_size;
    DType dtype;
  };
  const Case cases[] = {
      {RotaryPairing::kHalves, 4, 4, 64, 64, 16, DType::F16},
      {RotaryPairing::kHalves, 8, 2, 128, 128, 32, DType::BF16},
      {RotaryPairing::kHalves, 3, 1, 80, 20, 32, DType::F16},
      {RotaryPairing::kInterleaved, 4, 4, 256, 64, 32, DType::F16},
      {RotaryPairing::kInterleaved, 6, 3, 96, 96, 8, DType::BF16},
      {RotaryPairing::kTwoBlocks, 4, 2, 128, 64, 32, DType::F16},
      {RotaryPairing::kNone, 5, 5, 40, 0, 32, DType::BF16},
  };
  uint64_t seed = 20000;
  for (const Case& t : cases) {
    seed += 10;
    constexpr int64_t kTokens = 7, kMaxPositions = 100;
    constexpr int32_t kPages = 64;
    const int64_t q_width = t.heads * t.head_dim, kv_width = t.kv_heads * t.head_dim;
    const int64_t row = q_width + 2 * kv_width;
    const int64_t tables_width = kMaxPositions / t.page_size + 1;
    const int64_t page_stride = 2 * kv_width * t.page_size;
    const Tensor qkv = random_tensor(kTokens * row, 1.0F, seed, t.dtype, s);
    // Sequence 0 at three positions, others at one; token 4 is padding.
    const std::vector<int32_t> positions = {0, 1, 63, 31, -1, 32, 99};
    const std::vector<int32_t> sequences = {0, 0, 0, 1, 1, 2, 3};
    const std::vector<int32_t> blocks = {0, 3, 5, 0, 0, 7, 99};
    const std::vector<int32_t> tables = scattered_tables(4, tables_width, kPages);
    const int64_t angles =
        t.pairing == RotaryPairing::kTwoBlocks ? t.rotary_dim / 4 : t.rotary_dim / 2;
    std::vector<float> cos(static_cast<size_t>(kMaxPositions * angles)), sin(cos.size());
    for (int64_t p = 0; p < kMaxPositions; ++p) {
      for (int64_t i = 0; i < angles; ++i) {
        const double angle =
            static_cast<double>(p) *
            std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(angles));
        cos[static_cast<size_t>(p * angles + i)] = static_cast<float>(std::cos(angle));
        sin[static_cast<size_t>(p * angles + i)] = static_cast<float>(std::sin(angle));
      }
    }
    // What the reference makes of every token; two blocks are two calls on halves of the head.
    const auto turned = [&](std::vector<float> x, int64_t heads) {
      for (int64_t token = 0; token < kTokens; ++token) {
        if (t.pairing == RotaryPairing::kNone || positions[static_cast<size_t>(token)] < 0)
          continue;
        const int64_t at = positions[static_cast<size_t>(token)] * angles;
        float* const head0 = x.data() + token * heads * t.head_dim;
        if (t.pairing == RotaryPairing::kTwoBlocks) {
          const int64_t block_at = blocks[static_cast<size_t>(token)] * angles;
          for (int64_t h = 0; h < heads; ++h) {
            float* const head = head0 + h * t.head_dim;
            reference::rotary(head, cos.data() + at, sin.data() + at, 1, 1, t.head_dim,
                              t.rotary_dim / 2, false, 0);
            reference::rotary(head + t.rotary_dim / 2, cos.data() + block_at, sin.data() + block_at,
                              1, 1, t.head_dim, t.rotary_dim / 2, false, 0);
          }
        } else {
          reference::rotary(head0, cos.data() + at, sin.data() + at, 1, heads, t.head_dim,
                            t.rotary_dim, t.pairing == RotaryPairing::kInterleaved, 0);
        }
      }
      return x;
    };
    const auto columns = [&](int64_t from, int64_t width) {
      std::vector<float> part(static_cast<size_t>(kTokens * width));
      for (int64_t token = 0; token < kTokens; ++token) {
        std::copy_n(qkv.values.begin() + token * row + from, width, part.begin() + token * width);
      }
      return part;
    };
    const std::vector<float> q_want = turned(columns(0, q_width), t.heads);
    const std::vector<float> k_want = turned(columns(q_width, kv_width), t.kv_heads);
    const std::vector<float> v_want = columns(q_width + kv_width, kv_width);
    std::vector<float> qkv_want = qkv.values;
    std::vector<float> pool_want(static_cast<size_t>(kPages * page_stride), NAN);
    for (int64_t token = 0; token < kTokens; ++token) {
      const int32_t p = positions[static_cast<size_t>(token)];
      if (p < 0) continue;
      std::copy_n(q_want.begin() + token * q_width, q_width, qkv_want.begin() + token * row);
      const int64_t page = tables[static_cast<size_t>(
          sequences[static_cast<size_t>(token)] * tables_width + p / t.page_size)];
      for (int64_t h = 0; h < t.kv_heads; ++h) {
        const int64_t at = page * page_stride + (h * t.page_size + p % t.page_size) * t.head_dim;
        std::copy_n(k_want.begin() + token * kv_width + h * t.head_dim, t.head_dim,
                    pool_want.begin() + at);
        std::copy_n(v_want.begin() + token * kv_width + h * t.head_dim, t.head_dim,
                    pool_want.begin() + at + kv_width * t.page_size);
      }
    }

    const Buffer pool(static_cast<size_t>(kPages * page_stride) * 2);
    const Buffer table_device = upload_ints(tables, s), position_device = upload_ints(positions, s);
    const Buffer sequence_device = upload_ints(sequences, s), block_device = upload_ints(blocks, s);
    const Tensor cos_device = make_tensor(cos, DType::F32, s);
    const Tensor sin_device = make_tensor(sin, DType::F32, s);
    std::vector<uint8_t> q_bits, pool_bits;
    bool same = true;
    for (int i = 0; i < 2; ++i) {
      pool.poison(s);
      qkv.buffer.upload(qkv.raw.data(), qkv.raw.size(), s);
      auto* const base = qkv.buffer.as<uint16_t>();
      cuda::rotary_kv({.q = base,
                       .k = base + q_width,
                       .v = base + q_width + kv_width,
                       .q_stride = row,
                       .kv_stride = row,
                       .num_tokens = kTokens,
                       .num_heads = t.heads,
                       .kv = {.pool = pool.data(),
                              .page_stride = page_stride,
                              .num_kv_heads = t.kv_heads,
                              .head_dim = t.head_dim,
                              .page_size = t.page_size,
                              .dtype = t.dtype},
                       .tables = {.pages = table_device.as<int32_t>(), .stride = tables_width},
                       .sequences = sequence_device.as<int32_t>(),
                       .positions = position_device.as<int32_t>(),
                       .pairing = t.pairing,
                       .rotary_dim = t.rotary_dim,
                       .cos = cos_device.buffer.as<float>(),
                       .sin = sin_device.buffer.as<float>(),
                       .block_positions = block_device.as<int32_t>()},
                      c.stream);
      const std::vector<uint8_t> q_now = qkv.buffer.download(s), pool_now = pool.download(s);
      same = same && (i == 0 || (q_now == q_bits && pool_now == pool_bits));
      q_bits = q_now;
      pool_bits = pool_now;
    }
    const char* const words[] = {"none", "halves", "interleaved", "two blocks"};
    const std::string name = std::string("rotary_kv ") + words[static_cast<int>(t.pairing)] + " " +
                             std::to_string(t.heads) + "/" + std::to_string(t.kv_heads) + " d" +
                             std::to_string(t.head_dim) + " rot" + std::to_string(t.rotary_dim) +
                             " " + dtype_word(t.dtype);
    c.report.check_true(name + ": same bits twice", same);
    c.report.check(name + ": q, k and v columns", relative_error(widen(q_bits, t.dtype), qkv_want),
                   bound_of(t.dtype));
    // Written rows close to the reference, every other element of the pool still NaN.
    const std::vector<float> pool_got = widen(pool_bits, t.dtype);
    std::vector<float> got, want;
    bool only_rows = true;
    for (size_t i = 0; i < pool_want.size(); ++i) {
      if (std::isnan(pool_want[i])) {
        only_rows = only_rows && std::isnan(pool_got[i]);
      } else {
        got.push_back(pool_got[i]);
        want.push_back(pool_want[i]);
      }
    }
    c.report.check(name + ": cache", relative_error(got, want), bound_of(t.dtype));
    c.report.check_true(name + ": no other row written", only_rows);
  }
}

void check_attention(const Checker& c) {
  const cudaStream_t s = c.stream.handle;
  struct Case {
    int32_t heads, kv_heads, head_dim, page_size;
    std::vector<int32_t> lens;
    DType dtype = DType::F16;
    bool alibi = false;
    int32_t window = 0;
    int32_t splits = 0;        ///< 0: what decode_attention_splits says
    int64_t unused_pages = 0;  ///< in front of those in use, to pass 2^31 elements
  };
  std::vector<Case> cases = {
      {4, 4, 64, 32, {1, 31, 32, 33, 0, 257}},
      {4, 4, 64, 32, {1, 31, 32, 33, 0, 257}, DType::BF16, false, 0, 1},
      {8, 2, 128, 32, {5, 64, 65, 500}},
      {8, 2, 128, 16, {5, 64, 65, 500}, DType::BF16, true},
      {14, 2, 64, 32, {130, 1, 700}, DType::BF16},
      {32, 2, 128, 64, {600, 256, 257}},
      {6, 3, 80, 16, {129, 77}},
      {5, 5, 96, 32, {300}, DType::F16, true},
      {3, 1, 256, 32, {200, 90}},
      {2, 2, 40, 32, {64, 320, 319, 321}, DType::BF16},
      {8, 8, 128, 32, {400, 100, 37}, DType::F16, false, 100},
      {8, 2, 128, 32, {400, 100, 37}, DType::F16, true, 33, 5},
      {4, 1, 128, 32, {1000}, DType::F16, false, 1},
  };
  if (!c.small) {
    cases.push_back({32, 32, 128, 32, {2048, 1999}});
    cases.push_back({32, 8, 128, 32, {8192, 5, 4097}, DType::BF16});
    cases.push_back({71, 1, 64, 32, {1500}, DType::BF16});
    cases.push_back({2, 2, 128, 32, {300}, DType::F16, false, 0, 0, 140000});
  }
  uint64_t seed = 30000;
  for (const Case& t : cases) {
    seed += 10;
    const auto num_sequences = static_cast<int64_t>(t.lens.size());
    int64_t pages_each = 1;
    for (const int32_t len : t.lens) {
      pages_each = std::max<int64_t>(pages_each, (len + t.page_size - 1) / t.page_size);
    }
    const int64_t row = t.kv_heads * t.head_dim, page_elements = 2 * row * t.page_size;
    const int64_t used_pages = num_sequences * pages_each;
    // Scattered but unique: pages in reverse order.
    std::vector<int32_t> tables(static_cast<size_t>(used_pages));
    for (size_t i = 0; i < tables.size(); ++i) {
      tables[i] = static_cast<int32_t>(t.unused_pages + used_pages - 1 - static_cast<int64_t>(i));
    }
    // NaN beyond each length: a kernel that multiplies a masked row by zero is caught.
    std::vector<float> values = random_values(used_pages * page_elements, 1.0F, seed);
    for (int64_t sequence = 0; sequence < num_sequences; ++sequence) {
      for (int64_t p = t.lens[static_cast<size_t>(sequence)]; p < pages_each * t.page_size; ++p) {
        const int64_t page =
            tables[static_cast<size_t>(sequence * pages_each + p / t.page_size)] - t.unused_pages;
        for (int64_t part = 0; part < 2 * t.kv_heads; ++part) {
          std::fill_n(values.begin() + page * page_elements +
                          (part * t.page_size + p % t.page_size) * t.head_dim,
                      t.head_dim, NAN);
        }
      }
    }
    const Tensor used = make_tensor(values, t.dtype, s);
    std::optional<Buffer> large;
    void* pool = used.data();
    if (t.unused_pages > 0) {
      const size_t offset = static_cast<size_t>(t.unused_pages * page_elements) * 2;
      large.emplace(offset + used.raw.size());
      large->poison(s);
      LLMCTL_CUDA_CHECK(cudaMemcpyAsync(large->as<char>() + offset, used.data(), used.raw.size(),
                                        cudaMemcpyDeviceToDevice, s));
      pool = large->data();
    }
    const Tensor q =
        random_tensor(num_sequences * t.heads * t.head_dim, 1.0F, seed + 1, t.dtype, s);
    std::vector<float> slopes;
    for (int32_t h = 0; h < t.heads; ++h) slopes.push_back(std::pow(2.0F, -0.5F * (h + 1)));
    const Tensor slopes_device = make_tensor(slopes, DType::F32, s);
    const float scale = 1.0F / std::sqrt(static_cast<float>(t.head_dim));

    std::vector<float> want(q.values.size());
    parallel_for(num_sequences, [&](int64_t i) {
      const int32_t len = t.lens[static_cast<size_t>(i)];
      if (len == 0) return;
      std::vector<int32_t> table(tables.begin() + i * pages_each,
                                 tables.begin() + (i + 1) * pages_each);
      for (int32_t& page : table) page -= static_cast<int32_t>(t.unused_pages);
      const int32_t* const table_data = table.data();
      const int32_t position = len - 1;
      kernels::AttentionArgs args;
      args.q = q.values.data() + i * t.heads * t.head_dim;
      args.q_stride = t.heads * t.head_dim;
      args.kv.pool = const_cast<float*>(used.values.data());
      args.kv.page_stride = page_elements;
      args.kv.num_kv_heads = t.kv_heads;
      args.kv.head_dim = t.head_dim;
      args.kv.page_size = t.page_size;
      args.block_tables = &table_data;
      args.positions = &position;
      args.num_tokens = 1;
      args.num_heads = t.heads;
      args.scale = scale;
      args.alibi_slopes = t.alibi ? slopes.data() : nullptr;
      args.window = t.window;
      reference::attention(want.data() + i * t.heads * t.head_dim, args);
    });

    const int32_t splits = t.splits > 0 ? t.splits
                                        : cuda::decode_attention_splits(
                                              num_sequences, t.heads, t.kv_heads, c.stream.num_sms);
    const Buffer scratch(
        cuda::decode_attention_scratch_bytes(num_sequences, t.heads, t.head_dim, splits));
    scratch.poison(s);
    // Only the arrival counters at its front must be zero.
    LLMCTL_CUDA_CHECK(cudaMemsetAsync(
        scratch.data(), 0, static_cast<size_t>(num_sequences * t.heads) * sizeof(int32_t), s));
    const Buffer table_device = upload_ints(tables, s), lens_device = upload_ints(t.lens, s);
    std::string name = "decode_attention " + std::to_string(t.heads) + "/" +
                       std::to_string(t.kv_heads) + " d" + std::to_string(t.head_dim) + " page" +
                       std::to_string(t.page_size) + " " + dtype_word(t.dtype) + " splits" +
                       std::to_string(splits) + " lens";
    for (const int32_t len : t.lens) name += " " + std::to_string(len);
    if (t.alibi) name += " alibi";
    if (t.window > 0) name += " window" + std::to_string(t.window);
    if (t.unused_pages > 0) name += " beyond 2^31 elements";
    // P is rounded to the cache's dtype before it meets V.
    const double bound = t.dtype == DType::F16 ? 2e-3 : 1e-2;
    c.run(name, t.dtype, want, bound, [&](void* y) {
      cuda::decode_attention(y,
                             {.q = q.data(),
                              .q_stride = t.heads * t.head_dim,
                              .kv = {.pool = pool,
                                     .page_stride = page_elements,
                                     .num_kv_heads = t.kv_heads,
                                     .head_dim = t.head_dim,
                                     .page_size = t.page_size,
                                     .dtype = t.dtype},
                              .tables = {.pages = table_device.as<int32_t>(), .stride = pages_each},
                              .seq_lens = lens_device.as<int32_t>(),
                              .num_sequences = num_sequences,
                              .num_heads = t.heads,
                              .scale = scale,
                              .alibi_slopes = t.alibi ? slopes_device.buffer.as<float>() : nullptr,
                              .window = t.window,
                              .num_splits = splits,
                              .scratch = scratch.data()},
                             c.stream);
    });
  }
}

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
    }
  }
}

void check_argmax(const Checker& c) {
  const cudaStream_t s = c.stream.handle;
  uint64_t seed = 50000;
  for (const DType dtype : {DType::F32, DType::F16, DType::BF16}) {
    for (const int64_t n : {int64_t{1}, int64_t{257}, int64_t{50257}}) {
      constexpr int64_t kRows = 5;
      const int64_t stride = n + 3;
      std::vector<float> values = random_values(kRows * stride, 1.0F, ++seed);
      values[0] = n == 1 ? -INFINITY : values[0];
      if (n > 1) {
        // Row 1: ties, row 2: NaN among numbers, row 3: only NaN, row 4: all negative or -inf.
        values[static_cast<size_t>(stride + n / 2)] = values[static_cast<size_t>(stride + n - 1)] =
            9.0F;
        for (int64_t i = 0; i < n; i += 2) values[static_cast<size_t>(2 * stride + i)] = NAN;
        for (int64_t i = 0; i < n; ++i) {
          values[static_cast<size_t>(3 * stride + i)] = NAN;
          float& v = values[static_cast<size_t>(4 * stride + i)];
          v = i % 3 == 0 ? -INFINITY : -std::fabs(v) - 1.0F;
        }
      }
      const Tensor logits = make_tensor(values, dtype, s);
      const Buffer scratch(cuda::argmax_scratch_bytes(kRows)), ids(kRows * 4);
      scratch.zero(s);
      bool right = true;
      for (int again = 0; again < 2; ++again) {
        ids.poison(s);
        cuda::argmax(ids.as<int32_t>(), logits.data(), dtype, kRows, n, stride, scratch.data(),
                     c.stream);
        const std::vector<uint8_t> raw = ids.download(s);
        for (int64_t r = 0; r < kRows; ++r) {
          int32_t want = -1, got = 0;
          for (int64_t i = 0; i < n; ++i) {
            const float v = logits.values[static_cast<size_t>(r * stride + i)];
            if (std::isnan(v)) continue;
            if (want < 0 || v > logits.values[static_cast<size_t>(r * stride + want)]) {
              want = static_cast<int32_t>(i);
            }
          }
          std::memcpy(&got, raw.data() + 4 * r, 4);
          right = right && got == want;
        }
      }
      c.report.check_true("argmax " + dtype_word(dtype) + " n " + std::to_string(n), right);
    }
  }
}

/// A captured launch must give the bits of the eager one, also when its inputs change in place.
void check_graph(const Checker& c) {
  const cudaStream_t s = c.stream.handle;
  constexpr int64_t kN = 256, kK = 512;
  const Tensor x = random_tensor(kK, 1.0F, 60000, DType::F32, s);
  const Tensor w = random_tensor(kN * kK, 0.1F, 60001, DType::F16, s);
  const Tensor w2 = random_tensor(kK * kN, 0.1F, 60002, DType::F16, s);
  const Buffer hidden(kN * 2), out(kK * 4);
  const auto record = [&](const LaunchStream& on) {
    cuda::linear(hidden.data(), DType::F16,
                 {.x = x.data(),
                  .x_dtype = DType::F32,
                  .w = w.data(),
                  .num_tokens = 1,
                  .n = kN,
                  .k = kK,
                  .norm = cuda::NormKind::kRmsNorm,
                  .norm_eps = 1e-5F},
                 on);
    cuda::linear(out.data(), DType::F32,
                 {.x = hidden.data(),
                  .w = w2.data(),
                  .residual = x.buffer.as<float>(),
                  .num_tokens = 1,
                  .n = kK,
                  .k = kN},
                 on);
  };
  LaunchStream plain = c.stream;
  plain.programmatic = false;
  const Graph graph(s, [&] { record(c.stream); });
  bool same = true;
  for (uint64_t seed = 0; seed < 3; ++seed) {
    const std::vector<float> values = random_values(kK, 1.0F, 60010 + seed);
    x.buffer.upload(values.data(), kK * 4, s);
    out.poison(s);
    record(plain);
    const std::vector<uint8_t> eager = out.download(s);
    out.poison(s);
    graph.replay();
    same = same && out.download(s) == eager;
  }
  c.report.check_true("graph with programmatic launches gives the bits of plain launches", same);
}

}  // namespace

void check_kernels(Report& report, const LaunchStream& stream, bool small) {
  const Checker c{report, stream, small};
  report.section("Checks: linear");
  check_linears(c);
  report.section("Checks: quantized linear");
  check_quantized_linears(c);
  report.section("Checks: norms");
  check_norms(c);
  report.section("Checks: rotary and KV append");
  check_rotary(c);
  report.section("Checks: decode attention");
  check_attention(c);
  report.section("Checks: elementwise and embedding");
  check_elementwise(c);
  report.section("Checks: argmax and graphs");
  check_argmax(c);
  check_graph(c);
  report.flush();
}

}  // namespace llmctl::gpu
