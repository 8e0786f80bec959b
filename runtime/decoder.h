// The one transformer decoder of all families on the CPU: what ModelConfig says, on one rank's
// share of it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "formats/core/thread_pool.h"
#include "kernels/ops.h"
#include "reshard/load.h"
#include "reshard/model_config.h"
#include "runtime/kv_cache.h"
#include "runtime/rank_model.h"
#include "runtime/rope.h"

namespace llmctl::runtime {

/// One rank's weights, cache and scratch. A pass allocates nothing. Every logit is bit-for-bit
/// independent of tp, pp, and the other tokens of its passes: matrices are split by output rows
/// and activations gathered, never partial sums added (docs/runtime.md). Not thread-safe.
class Decoder final : public RankModel {
 public:
  /// Takes the weights that `weight_layout` describes. `pool` must outlive the decoder. Throws
  /// kInternal when a weight is missing or of another shape than the config says.
  Decoder(const ModelConfig& config, const RankPlace& place, reshard::RankWeights weights,
          ThreadPool& pool, int64_t max_tokens, int64_t page_size, DType kv_dtype = DType::F32,
          kernels::Activations activations = kernels::Activations::kF32);
  ~Decoder() override;

  const RankPlace& place() const override { return place_; }
  KvCache& cache() override { return cache_; }

  /// As RankModel says. Requires: at most max_tokens tokens.
  void compute(const Step& step, const RankComm& comm) override;
  void hand_over(const RankComm& comm) override;
  const float* logits(std::span<const int32_t> rows, const RankComm& comm) override;

 private:
  struct Matrix : kernels::PanelMatrix {
    const float* bias = nullptr;  // (rows), or null
  };
  struct Norm {
    const float* weight = nullptr;
    const float* bias = nullptr;
  };
  /// Over a token and the one before it; the rank's rows of all output channels.
  struct Convolution {
    Matrix matrix;  // (local output channels, 2 * input channels of a group)
    int64_t in_channels = 0, out_channels = 0;
    int64_t state_offset = 0;  ///< of its last input in a page's state
  };
  struct Layer {
    Norm norm1, norm2;
    Matrix qkv, o, up, down;  // `up` holds gate and up when the MLP is gated
    // With localized filtering, in place of qkv.
    Convolution conv1, conv2;
    Norm lf_norm;
    Matrix qk, v;
  };

  Matrix find_matrix(const std::string& name, int64_t rows, int64_t columns) const;
  Matrix get_matrix(const std::string& name, int64_t rows, int64_t columns) const;
  const float* find_vector(const std::string& name, int64_t size) const;
  Norm find_norm(const std::string& name) const;
  void bind_weights();
  void allocate(int64_t max_tokens);

  void embed(const Step& step, const RankComm& comm);
  void run_layer(int64_t layer, const Step& step, const RankComm& comm);
  void attend(const float* x, int64_t layer, const Step& step, const RankComm& comm);
  void project_qkv(const float* x, int64_t layer, const Step& step, const RankComm& comm);
  void turn(float* heads, int64_t num_heads);
  // runtime/localized_filtering.cc
  const float* filter(const float* x, int64_t layer, const Step& step, const RankComm& comm);
  void convolve(float* y, const float* x, const Convolution& convolution, int64_t layer,
                const Step& step, const RankComm& comm);
  const float* find_previous(const float* x, const Convolution& convolution, int64_t t,
                             int64_t layer, const Step& step) const;
  void keep_state(const float* x, int64_t layer, const Step& step);
  void run_mlp(const float* x, const Layer& weights, const RankComm& comm);
  void normalize(float* y, const float* x, const Norm& norm);
  /// What enters the products with a matrix.
  kernels::Activations activations_for(const kernels::PanelMatrix& m) const {
    return m.dtype == DType::BF16 ? activations_ : kernels::Activations::kF32;
  }
  /// y = matrix x + bias of the step's tokens; rows of y are `y_stride` apart.
  void multiply(float* y, const float* x, const Matrix& matrix, int64_t y_stride);
  void multiply_rows(float* y, const float* x, const Matrix& matrix, int64_t num_rows,
                     int64_t y_stride);
  /// multiply, then the ranks' columns side by side: y is (num_tokens, columns).
  void multiply_gathered(float* y, const float* x, const Matrix& matrix, int64_t num_rows,
                         int64_t columns, const RankComm& comm);
  void gather_columns(float* y, const float* local, int64_t num_rows, int64_t local_columns,
                      int64_t columns, const RankComm& comm);

  ModelConfig config_;
  RankPlace place_;
  reshard::RankWeights weights_;
  ThreadPool& pool_;
  kernels::Activations activations_;  ///< of products with BF16 matrices
  KvCache cache_;
  std::optional<Rope> rope_;

  // Per-rank sizes.
  int64_t local_heads_ = 0, local_kv_heads_ = 0, local_ffn_ = 0;
  int64_t local_hidden_ = 0, local_vocab_ = 0, local_filter_ = 0;  // of the padded axes

  Matrix embed_, project_in_, project_out_, pos_, head_;
  Norm embed_norm_, final_norm_;
  std::vector<Layer> layers_;
  std::vector<float> slopes_;  // ALiBi, of this rank's heads

  // Scratch of one pass; sizes in allocate().
  int64_t max_tokens_ = 0, num_tokens_ = 0;
  std::vector<float> x_, h_, qkv_, attention_, branch_, inner_, second_, cos_, sin_;
  std::vector<float> local_, gathered_, rows_, narrow_rows_, logits_;
  std::vector<float> window_, filter_;  // localized filtering
  std::vector<float> packed_;           // kernels::linear's
};

/// ALiBi slopes of all heads (Press et al., 2022; for head counts that are no power of two as
/// BLOOM's build_alibi_tensor).
std::vector<float> alibi_slopes(int64_t num_heads);

}  // namespace llmctl::runtime
