#include <string>
#include <vector>

#include "kernels/cuda/norm.h"
#include "kernels/ops.h"
#include "tests/gpu/checker.h"

namespace llmctl::gpu {

namespace cuda = kernels::cuda;
namespace reference = kernels::reference;

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

}  // namespace llmctl::gpu
