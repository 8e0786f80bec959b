// The transformer decoder on a GPU: what ModelConfig says, on one rank's share of it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kernels/cuda/launch_stream.h"
#include "reshard/load.h"
#include "reshard/model_config.h"
#include "runtime/cuda/back_end.h"
#include "runtime/cuda/blas.h"
#include "runtime/cuda/kv_cache.h"
#include "runtime/cuda/memory.h"
#include "runtime/cuda/pass_arrays.h"
#include "runtime/cuda/weights.h"
#include "runtime/rank_model.h"
#include "runtime/rope.h"

namespace llmctl::runtime::cuda {

/// Sizes of one rank's axes on the device, where the width of a head and the rank's part of the
/// MLP are padded with zeros to multiples of 8.
struct DeviceSizes {
  DeviceSizes(const ModelConfig& config, const RankPlace& place);

  int64_t hidden, width;                 ///< of the residual stream, of the embedding
  int64_t heads, kv_heads, local_heads;  ///< kv_heads: of this rank
  int64_t head_dim, padded_dim;
  int64_t ffn, padded_ffn;  ///< of this rank
  int64_t local_hidden, local_vocab;

  int64_t qkv_width() const { return (local_heads + 2 * kv_heads) * padded_dim; }
  int64_t heads_width() const { return heads * padded_dim; }
};

/// Bytes of this rank's matrices, and of what a decoder holds beside them and the cache.
uint64_t device_weight_bytes(const ModelConfig& config, const RankPlace& place);
uint64_t device_scratch_bytes(const ModelConfig& config, const RankPlace& place,
                              int64_t max_tokens);

/// Activations between products have the dtype of the matrices, the residual stream is F32. As on
/// the CPU matrices are split by output rows and activations gathered, so that a result does not
/// depend on tp and pp; unlike there it depends on how many tokens share a pass. All work goes to
/// one stream; the host waits where ranks exchange activations and for logits. Not thread-safe.
class DeviceDecoder final : public RankModel {
 public:
  /// As make_model; on the current device, which is `device`.
  DeviceDecoder(const ModelConfig& config, const RankPlace& place,
                const reshard::RankWeights& weights, ThreadPool& pool, int device, int num_devices,
                DType dtype, const ModelOptions& options);

  const RankPlace& place() const override { return place_; }
  PagedCache& cache() override { return cache_; }
  void compute(const Step& step, const RankComm& comm) override;
  void hand_over(const RankComm& comm) override;
  const float* logits(std::span<const int32_t> rows, const RankComm& comm) override;

 private:
  struct Norm {
    const float* weight = nullptr;
    const float* bias = nullptr;
    // For products that normalise what they read; only where 16 bits hold the values exactly.
    const void* weight_16bit = nullptr;
    const void* bias_16bit = nullptr;
    bool fuses = false;
  };
  struct Layer {
    Norm norm1, norm2;
    DeviceMatrix qkv, o, up, down;  // `up` holds gate and up when the MLP is gated
  };
  /// What a product reads: activations, or the residual stream with a norm that is still to come.
  struct Input {
    const void* x = nullptr;
    DType dtype = DType::F32;
    const Norm* norm = nullptr;
  };
  struct Finish {
    const float* residual = nullptr;
    bool activated = false, gated = false;
  };

  DeviceMatrix get_matrix(const reshard::RankWeights& weights, const std::string& name,
                          const PaddedAxis& rows, const PaddedAxis& columns, bool may_lack = false);
  Norm get_norm(const reshard::RankWeights& weights, const std::string& name);
  void bind_weights(const reshard::RankWeights& weights);
  void allocate(int64_t max_tokens);
  void use_device() const;

  void run_layers(const RankComm& comm);
  /// run_layers, or for passes that add one token to each sequence the graph of it.
  void run_or_replay(const RankComm& comm);
  void embed(const Step& step, const RankComm& comm);
  void run_layer(int64_t layer, const RankComm& comm);
  void attend(const Input& input, int64_t layer, const RankComm& comm);
  void run_inner(const Input& input, const Layer& weights, const RankComm& comm);
  /// x += matrix input + bias, whole rows on every rank.
  void add_product(const DeviceMatrix& matrix, const void* input, const RankComm& comm);
  Input normed(const Norm& norm);
  void normalize(void* y, DType y_dtype, const float* x, const Norm& norm, int64_t num_tokens);
  void multiply(void* y, DType y_dtype, const DeviceMatrix& matrix, const Input& input,
                int64_t num_tokens, const Finish& finish);
  /// The ranks' columns side by side, through the host: y (num_rows, columns) of local
  /// (num_rows, local_columns).
  void gather_columns(void* y, const void* local, DType dtype, int64_t num_rows,
                      int64_t local_columns, int64_t columns, const RankComm& comm);
  /// Every rank's `bytes` at `local`, one after the other, on the host.
  const char* gather_on_host(const void* local, size_t bytes, const RankComm& comm);

  ModelConfig config_;
  RankPlace place_;
  int device_;
  DType dtype_;
  DeviceSizes sizes_;
  Stream stream_;
  kernels::cuda::LaunchStream launch_;
  DeviceKvCache cache_;
  WeightStore store_;
  std::unique_ptr<Blas> blas_;  // null where there is no library
  std::optional<Rope> rope_;
  PassArrays arrays_;

  DeviceMatrix embed_, project_in_, project_out_, pos_, head_;
  Norm embed_norm_, final_norm_;
  std::vector<Layer> layers_;
  const float* slopes_ = nullptr;
  const int32_t* row_numbers_ = nullptr;  // 0, 1, 2 ...

  /// What a graph of the layers has been recorded for.
  struct GraphKey {
    int64_t num_tokens = 0, table_stride = 0, generation = 0;
    // Of the cache, whose layers lie capacity_pages apart.
    const void* pool = nullptr;
    int64_t capacity_pages = 0;

    bool operator==(const GraphKey&) const = default;
  };
  struct RecordedGraph {
    GraphKey key;
    Graph graph;
  };
  static constexpr size_t kMaxGraphs = 64;
  std::vector<RecordedGraph> graphs_;  // the ones used last, oldest first
  GraphKey last_key_;

  // Scratch of one pass; sizes in allocate().
  int64_t max_tokens_ = 0, num_tokens_ = 0;
  DeviceMemory x_memory_, x2_memory_;         // F32 (tokens, hidden)
  float* x_ = nullptr;                        // the residual stream, in one of them
  float* x2_ = nullptr;                       // the other one
  DeviceMemory h_, qkv_, attention_, inner_;  // of dtype_
  DeviceMemory gate_up_, narrow_, local_;     // where they are needed
  DeviceMemory attention_scratch_;
  DeviceMemory rows_, row_ids_, logits_;  // of kMaxLogitRows tokens
  PinnedMemory boundary_, send_, receive_, merged_, row_ids_host_, logits_host_;
  Event boundary_done_, rows_done_;
};

}  // namespace llmctl::runtime::cuda
