// Chains of the real kernels in the order of a decode step, with random weights of a named model's
// geometry. Not a model: no tokenizer, no checkpoint, one fixed position. What it measures is how
// close the kernels together, with everything between them, come to the memory's speed.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/argmax.h"
#include "kernels/cuda/decode_attention.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/rotary_kv.h"
#include "tests/gpu/harness.h"

namespace llmctl::gpu {
namespace {

namespace cuda = kernels::cuda;
using cuda::LaunchStream;
using cuda::NormKind;

struct Geometry {
  const char* name;
  int64_t layers, hidden;
  int32_t heads, kv_heads, head_dim;
  int64_t intermediate, vocab;
  bool gpt;  ///< LayerNorm, biases, GELU, learned positions; else RMSNorm, rotary, SiLU gate
};

constexpr int32_t kPage = 32;

class Chain {
 public:
  Chain(const Geometry& g, int64_t batch, int32_t len, const LaunchStream& stream)
      : g_(g),
        batch_(batch),
        len_(len),
        q_width_(g.heads * g.head_dim),
        kv_width_(g.kv_heads * g.head_dim),
        fc1_rows_(g.gpt ? g.intermediate : 2 * g.intermediate),
        pages_each_((len + kPage - 1) / kPage),
        page_stride_(2 * kv_width_ * kPage),
        layer_elements_((q_width_ + 2 * kv_width_) * g.hidden + g.hidden * q_width_ +
                        fc1_rows_ * g.hidden + g.hidden * g.intermediate),
        splits_(cuda::decode_attention_splits(batch, g.heads, g.kv_heads, stream.num_sms)),
        weights_(static_cast<size_t>(g.layers * layer_elements_) * 2),
        table_(static_cast<size_t>(g.vocab * g.hidden) * 2),
        small_(1 << 20),
        cache_(static_cast<size_t>(g.layers * batch * pages_each_ * page_stride_) * 2),
        residual_(bytes(g.hidden, 4)),
        normed_(bytes(g.hidden, 2)),
        qkv_(bytes(q_width_ + 2 * kv_width_, 2)),
        attended_(bytes(q_width_, 2)),
        fc1_(bytes(fc1_rows_, 2)),
        gated_(bytes(g.intermediate, 2)),
        logits_(bytes(g.vocab, 4)),
        ids_(static_cast<size_t>(batch) * 4),
        positions_(
            upload_ints(std::vector<int32_t>(static_cast<size_t>(batch), len - 1), stream.handle)),
        lens_(upload_ints(std::vector<int32_t>(static_cast<size_t>(batch), len), stream.handle)),
        tables_(upload_ints(page_ids(), stream.handle)),
        attention_scratch_(
            cuda::decode_attention_scratch_bytes(batch, g.heads, g.head_dim, splits_)),
        argmax_scratch_(cuda::argmax_scratch_bytes(batch)) {
    const float deviation = 1.0F / std::sqrt(static_cast<float>(g.hidden));
    fill_random(weights_.data(), DType::F16, g.layers * layer_elements_, deviation, 11,
                stream.handle);
    fill_random(table_.data(), DType::F16, g.vocab * g.hidden, 1.0F, 12, stream.handle);
    fill_random(small_.data(), DType::F16, (1 << 20) / 2, 0.3F, 13, stream.handle);
    fill_random(cache_.data(), DType::F16, static_cast<int64_t>(cache_.bytes() / 2), 0.5F, 14,
                stream.handle);
    ids_.zero(stream.handle);
    attention_scratch_.zero(stream.handle);
    argmax_scratch_.zero(stream.handle);
    LLMCTL_CUDA_CHECK(cudaStreamSynchronize(stream.handle));
  }

  /// Bytes a step must read: weights once, K and V of every sequence.
  double step_bytes() const {
    return static_cast<double>(weights_.bytes()) + static_cast<double>(table_.bytes()) +
           static_cast<double>(g_.layers * batch_ * len_) * 2 * static_cast<double>(kv_width_) * 2;
  }

  void step(const LaunchStream& on) {
    cuda::embedding(residual_.data(), DType::F32,
                    {.table = table_.data(),
                     .ids = ids_.as<int32_t>(),
                     .num_rows = g_.vocab,
                     .num_tokens = batch_,
                     .width = g_.hidden},
                    on);
    const char* w = weights_.as<char>();
    const auto take = [&](int64_t n, int64_t k) {
      const char* const at = w;
      w += n * k * 2;
      return at;
    };
    for (int64_t layer = 0; layer < g_.layers; ++layer) {
      const int64_t qkv_rows = q_width_ + 2 * kv_width_;
      normed_linear(qkv_.data(), take(qkv_rows, g_.hidden), qkv_rows, false, on);
      auto* const qkv = qkv_.as<uint16_t>();
      const cuda::DevicePagedKv kv{
          .pool = cache_.as<uint16_t>() + layer * batch_ * pages_each_ * page_stride_,
          .page_stride = page_stride_,
          .num_kv_heads = g_.kv_heads,
          .head_dim = g_.head_dim,
          .page_size = kPage};
      const cuda::DeviceBlockTables tables{.pages = tables_.as<int32_t>(), .stride = pages_each_};
      cuda::rotary_kv(
          {.q = qkv,
           .k = qkv + q_width_,
           .v = qkv + q_width_ + kv_width_,
           .q_stride = qkv_rows,
           .kv_stride = qkv_rows,
           .num_tokens = batch_,
           .num_heads = g_.heads,
           .kv = kv,
           .tables = tables,
           .positions = positions_.as<int32_t>(),
           .pairing = g_.gpt ? cuda::RotaryPairing::kNone : cuda::RotaryPairing::kHalves,
           .rotary_dim = g_.gpt ? 0 : g_.head_dim,
           // Any numbers do for timing: row 0 of a table made of small_.
           .cos = small_.as<float>(),
           .sin = small_.as<float>() + 1024,
           .rotary_positions = ids_zero()},
          on);
      cuda::decode_attention(attended_.data(),
                             {.q = qkv,
                              .q_stride = qkv_rows,
                              .kv = kv,
                              .tables = tables,
                              .seq_lens = lens_.as<int32_t>(),
                              .num_sequences = batch_,
                              .num_heads = g_.heads,
                              .scale = 1.0F / std::sqrt(static_cast<float>(g_.head_dim)),
                              .num_splits = splits_,
                              .scratch = attention_scratch_.data()},
                             on);
      add_linear(attended_.data(), take(g_.hidden, q_width_), q_width_, on);
      const char* const fc1 = take(fc1_rows_, g_.hidden);
      const void* ffn = gated_.data();
      normed_linear(g_.gpt || batch_ == 1 ? gated_.data() : fc1_.data(), fc1,
                    g_.gpt || batch_ > 1 ? fc1_rows_ : g_.intermediate, true, on);
      if (!g_.gpt && batch_ > 1) {
        cuda::gated_activation(gated_.data(), fc1_.data(), DType::F16, batch_, g_.intermediate,
                               kernels::ActivationOp::kSilu, on);
      }
      add_linear(ffn, take(g_.hidden, g_.intermediate), g_.intermediate, on);
    }
    head(on);
    cuda::argmax(ids_.as<int32_t>(), logits_.data(), DType::F32, batch_, g_.vocab, g_.vocab,
                 argmax_scratch_.data(), on);
  }

  std::vector<uint8_t> logits(cudaStream_t stream) const { return logits_.download(stream); }
  void reset_ids(cudaStream_t stream) const { ids_.zero(stream); }

 private:
  size_t bytes(int64_t width, int64_t element) const {
    return static_cast<size_t>(batch_ * width * element);
  }
  std::vector<int32_t> page_ids() const {
    std::vector<int32_t> ids(static_cast<size_t>(batch_ * pages_each_));
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(ids.size() - 1 - i);
    return ids;
  }
  /// (batch) zeros: the front of the argmax scratch would change, so a corner of small_ is wiped.
  const int32_t* ids_zero() {
    if (!zeroed_) {
      zeroed_ = std::make_unique<Buffer>(static_cast<size_t>(batch_) * 4);
      LLMCTL_CUDA_CHECK(cudaMemset(zeroed_->data(), 0, zeroed_->bytes()));
    }
    return zeroed_->as<int32_t>();
  }

  NormKind norm_kind() const { return g_.gpt ? NormKind::kLayerNorm : NormKind::kRmsNorm; }
  const void* small_vector() const { return small_.data(); }

  /// y = [act] (norm(residual) W^T + bias): one kernel for one token, else norm and product.
  void normed_linear(void* y, const char* w, int64_t n, bool is_fc1, const LaunchStream& on,
                     DType y_dtype = DType::F16, bool bias = true) {
    cuda::LinearArgs args{.x = residual_.data(),
                          .x_dtype = DType::F32,
                          .w = w,
                          .bias = g_.gpt && bias ? small_vector() : nullptr,
                          .num_tokens = batch_,
                          .n = n,
                          .k = g_.hidden};
    if (is_fc1) {
      args.gated = !g_.gpt && batch_ == 1;
      args.activated = g_.gpt;
      args.activation = g_.gpt ? kernels::ActivationOp::kGeluTanh : kernels::ActivationOp::kSilu;
    }
    if (batch_ == 1) {
      args.norm = norm_kind();
      args.norm_weight = small_vector();
      args.norm_bias = g_.gpt ? small_vector() : nullptr;
      args.norm_eps = 1e-5F;
    } else {
      const cuda::NormArgs norm{.x = residual_.data(),
                                .weight = small_vector(),
                                .bias = g_.gpt ? small_vector() : nullptr,
                                .num_tokens = batch_,
                                .hidden_size = g_.hidden,
                                .eps = 1e-5F};
      g_.gpt ? cuda::layer_norm(normed_.data(), DType::F16, norm, on)
             : cuda::rms_norm(normed_.data(), DType::F16, norm, on);
      args.x = normed_.data();
      args.x_dtype = DType::F16;
    }
    cuda::linear(y, y_dtype, args, on);
  }

  /// residual += x W^T + bias.
  void add_linear(const void* x, const char* w, int64_t k, const LaunchStream& on) {
    cuda::linear(residual_.data(), DType::F32,
                 {.x = x,
                  .w = w,
                  .bias = g_.gpt ? small_vector() : nullptr,
                  .residual = residual_.as<float>(),
                  .num_tokens = batch_,
                  .n = g_.hidden,
                  .k = k},
                 on);
  }

  void head(const LaunchStream& on) {
    normed_linear(logits_.data(), table_.as<char>(), g_.vocab, false, on, DType::F32, false);
  }

  Geometry g_;
  int64_t batch_;
  int32_t len_;
  int64_t q_width_, kv_width_, fc1_rows_, pages_each_, page_stride_, layer_elements_;
  int32_t splits_;
  Buffer weights_, table_, small_, cache_, residual_, normed_, qkv_, attended_, fc1_, gated_,
      logits_, ids_, positions_, lens_, tables_, attention_scratch_, argmax_scratch_;
  std::unique_ptr<Buffer> zeroed_;
};

void measure(Report& report, const LaunchStream& stream, const Geometry& g, int64_t batch,
             int32_t len) {
  Chain chain(g, batch, len, stream);
  LaunchStream plain = stream;
  plain.programmatic = false;
  const std::string name =
      std::string(g.name) + " b" + std::to_string(batch) + " context " + std::to_string(len);
  chain.step(plain);  // every kernel loaded before anything is captured
  chain.reset_ids(stream.handle);
  chain.step(plain);
  const std::vector<uint8_t> eager = chain.logits(stream.handle);
  const Graph graph(stream.handle, [&] { chain.step(plain); });
  report.bandwidth(name + ", eager", eager_microseconds(stream.handle, [&] { chain.step(plain); }),
                   chain.step_bytes(), "kernel chain");
  report.bandwidth(name + ", graph", graph.microseconds(), chain.step_bytes(), "kernel chain");
  const Graph programmatic(stream.handle, [&] { chain.step(stream); });
  chain.reset_ids(stream.handle);
  programmatic.replay();
  report.check_true(name + ": programmatic graph gives the bits of plain launches",
                    chain.logits(stream.handle) == eager);
  report.bandwidth(name + ", programmatic graph", programmatic.microseconds(), chain.step_bytes(),
                   "kernel chain");
  const std::vector<float> logits = widen(eager, DType::F32);
  report.check_true(
      name + ": logits are finite and differ",
      std::all_of(logits.begin(), logits.end(), [](float v) { return std::isfinite(v); }) &&
          logits[0] != logits[1]);
}

}  // namespace

void measure_decode_chains(Report& report, const LaunchStream& stream) {
  const Geometry gpt_345m{"GPT-345M", 24, 1024, 16, 16, 64, 4096, 50304, true};
  const Geometry gpt_1b3{"GPT-1.3B", 24, 2048, 16, 16, 128, 8192, 50304, true};
  const Geometry llama_1b{"LLaMA-3.2-1B", 16, 2048, 32, 8, 64, 8192, 128256, false};
  const Geometry gpt_6b7{"GPT-6.7B", 32, 4096, 32, 32, 128, 16384, 50304, true};
  const Geometry llama_7b{"LLaMA-2-7B", 32, 4096, 32, 32, 128, 11008, 32000, false};
  const Geometry llama_8b{"LLaMA-3-8B", 32, 4096, 32, 8, 128, 14336, 128256, false};
  report.section("Decode step as a kernel chain, F16, random weights (not a full model)");
  measure(report, stream, llama_7b, 1, 132);
  measure(report, stream, gpt_345m, 1, 132);
  measure(report, stream, llama_1b, 1, 132);
  measure(report, stream, gpt_1b3, 1, 132);
  measure(report, stream, gpt_6b7, 1, 132);
  measure(report, stream, llama_8b, 1, 132);
  measure(report, stream, llama_7b, 1, 2048);
  measure(report, stream, llama_8b, 1, 8192);
  measure(report, stream, gpt_345m, 16, 132);
  measure(report, stream, gpt_6b7, 16, 132);
  measure(report, stream, llama_7b, 16, 132);
  measure(report, stream, llama_7b, 8, 2048);
  report.flush();
}

}  // namespace llmctl::gpu
