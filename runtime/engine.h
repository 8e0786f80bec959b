// Generation: a model on a grid of tp x pp ranks that are threads of this process.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "formats/core/dtype.h"
#include "reshard/load.h"
#include "reshard/model_config.h"
#include "runtime/sampler.h"

namespace llmctl::runtime {

struct EngineOptions {
  int tp = 1, pp = 1;
  std::optional<DType> dtype;  ///< of the matrices in memory (F32, F16, BF16); nothing: as stored
  std::optional<bool> rope_in_bf16;  ///< how rotary angles are rounded; nothing: as the model says
  int threads = 0;                   ///< of all ranks together; 0: the cores this process may use
  int64_t page_size = 16;            ///< tokens to a page of the KV cache
  int64_t chunk_tokens = 512;        ///< tokens that one pass takes at most; bounds the scratch
};

struct GenerateRequest {
  std::vector<int32_t> prompt_ids;  ///< at least one, each below vocab_size
  int64_t max_new_tokens = 16;
  SamplingParams sampling;
  std::vector<int64_t> stop_ids;  ///< the first of these to be generated ends the sequence
};

/// Throws kUsage for an empty prompt, an id that the vocabulary lacks, sampling parameters out of
/// range, or prompt + max_new_tokens beyond the model's positions (the last token generated needs
/// none).
void check_request(const GenerateRequest& request, const ModelConfig& config);

struct GenerateResult {
  std::vector<int32_t> ids;  ///< generated, the stop id included
  bool stopped = false;      ///< by a stop id; otherwise by max_new_tokens
};

struct GenerateReport {
  std::vector<GenerateResult> results;  ///< in order of the requests
  double prefill_ms = 0;                ///< to the first token of the last prompt
  double decode_ms = 0;                 ///< of everything after
  int64_t prompt_tokens = 0;
  int64_t decoded_tokens = 0;  ///< generated during decode_ms
};

/// Called for each token as it is chosen, one call at a time, on a thread of the engine. What it
/// throws ends the generation and is rethrown to the caller.
using TokenCallback = std::function<void(size_t request, int32_t id)>;

/// Receives rows [first_row, first_row + num_rows) of (num_tokens, vocab_size), in order.
using LogitsSink = std::function<void(int64_t first_row, int64_t num_rows, const float* logits)>;

/// Owns the ranks' weights and caches. Greedy output in F32 is bit-for-bit the same for any tp,
/// pp, thread count, chunk and batch. One call at a time.
class Engine {
 public:
  /// Loads through `weight_layout`; `model` is not needed afterwards. Throws kUsage for a grid the
  /// model does not fit, before anything is read; what loading throws, named `rank N:`.
  Engine(const reshard::Model& model, const EngineOptions& options);
  ~Engine();

  const ModelConfig& config() const;
  /// Of all ranks together.
  uint64_t weight_bytes() const;

  /// Runs all requests as one batch of sequences of any lengths. Throws what check_request throws,
  /// before running; kInterrupted when the process was asked to stop.
  GenerateReport generate(std::span<const GenerateRequest> requests,
                          const TokenCallback& on_token = {});

  /// Logits of every position of a prompt.
  void prompt_logits(std::span<const int32_t> ids, const LogitsSink& sink);
  std::vector<float> prompt_logits(std::span<const int32_t> ids);  // (num_tokens, vocab_size)

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace llmctl::runtime
