// Every kernel's checks, and that of launches captured in a graph.
#include "kernels/cuda/linear.h"
#include "tests/gpu/checker.h"

namespace llmctl::gpu {
namespace {

namespace cuda = kernels::cuda;
using cuda::LaunchStream;

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
  report.section("Checks: prefill attention");
  check_prefill_attention(c);
  report.section("Checks: elementwise and embedding");
  check_elementwise(c);
  report.section("Checks: argmax and graphs");
  check_argmax(c);
  check_graph(c);
  report.flush();
}

}  // namespace llmctl::gpu
