// Generation: a model on a grid of tp x pp ranks.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "formats/core/dtype.h"
#include "kernels/linear.h"
#include "reshard/load.h"
#include "reshard/model_config.h"
#include "runtime/batch_loop.h"
#include "runtime/device.h"
#include "runtime/rank_group.h"
#include "runtime/request.h"

namespace llmctl::runtime {

struct EngineOptions {
  int tp = 1, pp = 1;
  std::optional<DType> dtype;  ///< of the matrices in memory (F32, F16, BF16); nothing: as stored
  /// How the matrices that can be are quantised; nothing: as stored. Bits 0: they are not.
  std::optional<kernels::Quantization> quantization;
  std::optional<bool> rope_in_bf16;  ///< how rotary angles are rounded; nothing: as the model says
  int threads = 0;                   ///< of all ranks together; 0: the cores this process may use
  int64_t page_size = 16;            ///< tokens to a page of the KV cache
  /// Of keys and values in it (F32, F16, BF16); nothing: F32 on the CPU, that of the matrices on
  /// GPUs.
  std::optional<DType> kv_dtype;
  /// What enters products with BF16 matrices; products with others take F32.
  kernels::Activations activations = kernels::Activations::kF32;
  Device device = Device::kCpu;  ///< of the ranks of this process
  bool share_device = false;     ///< several ranks may use one GPU
  /// How requests share passes and memory; chunk_tokens also bounds the scratch. The tokenizer must
  /// outlive the engine.
  BatchOptions batch;
};

/// Owns the ranks' weights and caches. On the CPU greedy output in F32 is bit-for-bit the same for
/// any tp, pp, thread count, chunk and batch. One call at a time.
class Engine {
 public:
  /// Loads through `weight_layout`; `model` is not needed afterwards. Throws kUsage for a grid the
  /// model does not fit, before anything is read; what loading throws, named `rank N:`. Without
  /// `ranks` all ranks are threads of this process; a group that spans processes must be made, and
  /// the engine with equal arguments, on each of them.
  Engine(const reshard::Model& model, const EngineOptions& options,
         std::unique_ptr<RankGroup> ranks = nullptr);
  ~Engine();

  const ModelConfig& config() const;
  /// Of all ranks together.
  uint64_t weight_bytes() const;

  /// On the processes that do not hold rank 0, the only thing to call: does what rank 0's process
  /// asks for and returns when its engine ends.
  void follow();

  // For the process that holds rank 0.

  /// Runs the requests as a batch of sequences of any lengths, of which batch_size are under way at
  /// a time. Throws what check_request throws,
  /// before running; kInterrupted when the process was asked to stop. Callbacks are called on a
  /// thread of the engine; what they throw ends the generation and is rethrown here. Keys and
  /// values of full pages are kept, as long as there is room, for later calls that begin alike.
  GenerateReport generate(std::span<const GenerateRequest> requests,
                          const GenerateCallbacks& callbacks = {});
  GenerateReport generate(std::span<const GenerateRequest> requests, const TokenCallback& on_token);

  /// Logits of every position of a prompt.
  void prompt_logits(std::span<const int32_t> ids, const LogitsSink& sink);
  std::vector<float> prompt_logits(std::span<const int32_t> ids);  // (num_tokens, vocab_size)

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace llmctl::runtime
