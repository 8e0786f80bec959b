// Each kernel alone, at the shapes of real models: microseconds per launch inside a replayed graph,
// GB/s, and per cent of the ceilings. Weights rotate through more memory than the L2 holds.
#include <algorithm>
#include <string>
#include <vector>

#include "kernels/cuda/argmax.h"
#include "kernels/cuda/decode_attention.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/quantized_linear.h"
#include "kernels/cuda/rotary_kv.h"
#include "tests/gpu/cublaslt.h"
#include "tests/gpu/harness.h"

namespace llmctl::gpu {
namespace {

namespace cuda = kernels::cuda;
using cuda::LaunchStream;

constexpr size_t kRotation = size_t{384} << 20;  // several times the 60 MB L2

/// Microseconds of one of `count` launches of a graph.
double per_launch(const LaunchStream& stream, int64_t count,
                  const std::function<void(int64_t)>& launch) {
  const Graph graph(stream.handle, [&] {
    for (int64_t i = 0; i < count; ++i) launch(i);
  });
  return graph.microseconds() / static_cast<double>(count);
}

void measure_linears(Report& report, const LaunchStream& stream, const Buffer& weights) {
  LaunchStream plain = stream;
  plain.programmatic = false;
  struct Shape {
    int64_t n, k;
    const char* what;
  };
  const Shape shapes[] = {
      {4096, 4096, "7B o"},     {12288, 4096, "7B qkv"},     {22016, 4096, "7B gate+up"},
      {4096, 11008, "7B down"}, {32000, 4096, "7B head"},    {3072, 2048, "1B qkv"},
      {2048, 2048, "1B o"},     {16384, 2048, "1B gate+up"}, {2048, 8192, "1B down"},
      {3072, 1024, "345M qkv"}, {1024, 1024, "345M o"},      {4096, 1024, "345M fc1"},
      {1024, 4096, "345M fc2"}, {50304, 1024, "345M head"},
  };
  const Buffer x(16 * 16384 * 4), y(16 * 65536 * 4);
  fill_random(x.data(), DType::F16, 16 * 16384, 1.0F, 5, stream.handle);
  const auto lt = CublasLt::open();
  for (const Shape& shape : shapes) {
    const int64_t bytes = shape.n * shape.k * 2;
    const int64_t copies = std::max<int64_t>(1, static_cast<int64_t>(kRotation) / bytes);
    const int64_t launches = std::max<int64_t>(copies, 8);
    const auto weight = [&](int64_t i) { return weights.as<char>() + (i % copies) * bytes; };
    const auto args = [&](int64_t tokens, int64_t i) {
      return cuda::LinearArgs{
          .x = x.data(), .w = weight(i), .num_tokens = tokens, .n = shape.n, .k = shape.k};
    };
    const std::string name =
        std::string(shape.what) + " " + std::to_string(shape.n) + " x " + std::to_string(shape.k);
    const auto one = [&](const std::string& how, int64_t tokens, const LaunchStream& on,
                         const auto& linear) {
      const double us = per_launch(
          on, launches, [&](int64_t i) { linear(y.data(), DType::F16, args(tokens, i), on); });
      report.bandwidth(name + ", " + how, us, static_cast<double>(bytes));
    };
    one("b1 fma, plain graph", 1, plain, cuda::linear_fma);
    one("b1 fma", 1, stream, cuda::linear_fma);
    one("b1 mma", 1, stream, cuda::linear_mma);
    one("b8 mma", 8, stream, cuda::linear_mma);
    one("b16 mma", 16, stream, cuda::linear_mma);
    if (lt) {
      for (const int64_t tokens : {int64_t{1}, int64_t{16}}) {
        const auto plan = lt->plan(DType::F16, tokens, shape.n, shape.k);
        const double us = per_launch(stream, launches, [&](int64_t i) {
          lt->run(*plan, y.data(), x.data(), weight(i), stream.handle);
        });
        report.bandwidth(name + ", b" + std::to_string(tokens) + " cuBLASLt", us,
                         static_cast<double>(bytes));
      }
    }
  }
}

void measure_quantized(Report& report, const LaunchStream& stream, const Buffer& weights) {
  const std::pair<int64_t, int64_t> shapes[] = {{4096, 4096},  {12288, 4096},  {22016, 4096},
                                                {4096, 11008}, {49152, 12288}, {12288, 49152}};
  const Buffer x(16 * 49152 * 2), y(16 * 65536 * 2), scales(65536 * 512 * 4);
  fill_random(x.data(), DType::F16, 16 * 49152, 1.0F, 5, stream.handle);
  fill_random(scales.data(), DType::F32, 65536 * 512, 0.01F, 6, stream.handle);
  for (const auto& [n, k] : shapes) {
    for (const int bits : {8, 4}) {
      const int64_t bytes = n * k * bits / 8;
      const int64_t copies = std::max<int64_t>(1, static_cast<int64_t>(kRotation) / bytes);
      const auto one = [&](int64_t tokens, int64_t group) {
        const double us = per_launch(stream, std::max<int64_t>(copies, 8), [&](int64_t i) {
          cuda::quantized_linear(y.data(), DType::F16,
                                 {.x = x.data(),
                                  .q = weights.as<char>() + (i % copies) * bytes,
                                  .bits = bits,
                                  .scales = scales.as<float>(),
                                  .group_size = group,
                                  .num_tokens = tokens,
                                  .n = n,
                                  .k = k},
                                 stream);
        });
        const int64_t scale_bytes = 4 * n * (group > 0 ? k / group : 1);
        report.bandwidth("int" + std::to_string(bits) + " " + std::to_string(n) + " x " +
                             std::to_string(k) + ", b" + std::to_string(tokens) +
                             (group > 0 ? " group " + std::to_string(group) : ""),
                         us, static_cast<double>(bytes + scale_bytes));
      };
      one(1, 0);
      one(1, 128);
      one(8, 0);
      one(16, 0);
    }
  }
}

void measure_attention(Report& report, const LaunchStream& stream, const Buffer& cache) {
  struct Shape {
    int64_t batch;
    int32_t len, heads, kv_heads, head_dim;
  };
  const Shape shapes[] = {
      {1, 136, 32, 32, 128},   {1, 2048, 32, 32, 128}, {1, 8192, 32, 32, 128},
      {1, 136, 16, 16, 64},    {1, 2048, 16, 16, 64},  {1, 2048, 32, 8, 64},
      {1, 2048, 32, 8, 128},   {1, 32768, 32, 8, 128}, {16, 136, 32, 32, 128},
      {16, 2048, 32, 32, 128}, {16, 2048, 32, 8, 128}, {64, 2048, 32, 8, 128},
  };
  constexpr int32_t kPage = 32;
  for (const Shape& t : shapes) {
    const int64_t pages_each = (t.len + kPage - 1) / kPage;
    const int64_t page_elements = int64_t{2} * t.kv_heads * kPage * t.head_dim;
    const int64_t layer_bytes = t.batch * pages_each * page_elements * 2;
    const int64_t layers =
        std::clamp<int64_t>(static_cast<int64_t>(cache.bytes()) / layer_bytes, 1, 32);
    std::vector<int32_t> tables(static_cast<size_t>(t.batch * pages_each));
    for (size_t i = 0; i < tables.size(); ++i) {
      tables[i] = static_cast<int32_t>(tables.size() - 1 - i);
    }
    const Buffer table_device = upload_ints(tables, stream.handle);
    const Buffer lens =
        upload_ints(std::vector<int32_t>(static_cast<size_t>(t.batch), t.len), stream.handle);
    const int64_t width = t.heads * t.head_dim;
    const Buffer q(static_cast<size_t>(t.batch * width) * 2),
        y(static_cast<size_t>(t.batch * width) * 2);
    fill_random(q.data(), DType::F16, t.batch * width, 1.0F, 6, stream.handle);
    const int32_t splits =
        cuda::decode_attention_splits(t.batch, t.heads, t.kv_heads, stream.num_sms);
    const Buffer scratch(
        cuda::decode_attention_scratch_bytes(t.batch, t.heads, t.head_dim, splits));
    scratch.zero(stream.handle);
    const double us = per_launch(stream, std::max<int64_t>(layers, 8), [&](int64_t i) {
      cuda::decode_attention(y.data(),
                             {.q = q.data(),
                              .q_stride = width,
                              .kv = {.pool = cache.as<char>() + (i % layers) * layer_bytes,
                                     .page_stride = page_elements,
                                     .num_kv_heads = t.kv_heads,
                                     .head_dim = t.head_dim,
                                     .page_size = kPage},
                              .tables = {.pages = table_device.as<int32_t>(), .stride = pages_each},
                              .seq_lens = lens.as<int32_t>(),
                              .num_sequences = t.batch,
                              .num_heads = t.heads,
                              .scale = 0.1F,
                              .num_splits = splits,
                              .scratch = scratch.data()},
                             stream);
    });
    report.bandwidth("attention b" + std::to_string(t.batch) + " len " + std::to_string(t.len) +
                         " heads " + std::to_string(t.heads) + "/" + std::to_string(t.kv_heads) +
                         " d" + std::to_string(t.head_dim),
                     us, 2.0 * static_cast<double>(t.batch) * t.len * t.kv_heads * t.head_dim * 2,
                     layers * layer_bytes < (int64_t{120} << 20) ? "partly from L2" : "");
  }
}

void measure_small(Report& report, const LaunchStream& stream, const Buffer& memory) {
  char* const base = memory.as<char>();
  constexpr int64_t kLaunches = 200;
  const auto time = [&](const std::string& name, double bytes,
                        const std::function<void(const LaunchStream&)>& launch) {
    for (const bool programmatic : {false, true}) {
      LaunchStream on = stream;
      on.programmatic = programmatic;
      report.bandwidth(name + (programmatic ? "" : ", plain graph"),
                       per_launch(on, kLaunches, [&](int64_t) { launch(on); }), bytes,
                       "from L2, latency");
    }
  };
  const std::pair<int64_t, int64_t> rows[] = {{1, 4096}, {16, 4096}, {1, 1024}};
  for (const auto& [tokens, hidden] : rows) {
    const double bytes = static_cast<double>(tokens * hidden) * 6;
    const cuda::NormArgs args{.x = base,
                              .weight = base + (64 << 20),
                              .num_tokens = tokens,
                              .hidden_size = hidden,
                              .eps = 1e-5F};
    const std::string shape = std::to_string(tokens) + " x " + std::to_string(hidden);
    time("rms_norm " + shape, bytes,
         [&](const LaunchStream& on) { cuda::rms_norm(base + (32 << 20), DType::F16, args, on); });
    time("layer_norm " + shape, bytes, [&](const LaunchStream& on) {
      cuda::layer_norm(base + (32 << 20), DType::F16, args, on);
    });
  }
  for (const int64_t tokens : {int64_t{1}, int64_t{16}}) {
    time("gated_activation silu " + std::to_string(tokens) + " x 11008",
         static_cast<double>(tokens) * 11008 * 6, [&](const LaunchStream& on) {
           cuda::gated_activation(base + (32 << 20), base, DType::F16, tokens, 11008,
                                  kernels::ActivationOp::kSilu, on);
         });
  }
  const Buffer scratch(cuda::argmax_scratch_bytes(16)), ids(64);
  scratch.zero(stream.handle);
  for (const int64_t tokens : {int64_t{1}, int64_t{16}}) {
    time("argmax f32 " + std::to_string(tokens) + " x 50304",
         static_cast<double>(tokens) * 50304 * 4, [&](const LaunchStream& on) {
           cuda::argmax(ids.as<int32_t>(), base, DType::F32, tokens, 50304, 50304, scratch.data(),
                        on);
         });
  }
  // Large inputs: the bytes bound.
  const int64_t rows_large = 32768;
  report.bandwidth("rms_norm 32768 x 4096 f16",
                   per_launch(stream, 8,
                              [&](int64_t) {
                                cuda::rms_norm(base + (int64_t{512} << 20), DType::F16,
                                               {.x = base,
                                                .x_dtype = DType::F16,
                                                .num_tokens = rows_large,
                                                .hidden_size = 4096,
                                                .eps = 1e-5F},
                                               stream);
                              }),
                   static_cast<double>(rows_large) * 4096 * 4);
  report.bandwidth("activation silu 134M f16",
                   per_launch(stream, 8,
                              [&](int64_t) {
                                cuda::activation(base + (int64_t{512} << 20), base, DType::F16,
                                                 rows_large * 4096, kernels::ActivationOp::kSilu,
                                                 stream);
                              }),
                   static_cast<double>(rows_large) * 4096 * 4);
}

}  // namespace

void measure_kernels(Report& report, const LaunchStream& stream) {
  const Buffer memory(size_t{1} << 30);
  fill_random(memory.data(), DType::F16, int64_t{1} << 29, 0.5F, 4, stream.handle);
  report.section("Kernels: linear, F16");
  measure_linears(report, stream, memory);
  report.section("Kernels: linear, INT8 and INT4 weights, F16 activations");
  measure_quantized(report, stream, memory);
  report.section("Kernels: decode attention, F16, page size 32");
  measure_attention(report, stream, memory);
  report.section("Kernels: small operations");
  measure_small(report, stream, memory);
  report.flush();
}

}  // namespace llmctl::gpu
