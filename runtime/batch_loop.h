// One rank's part in generating a batch: which tokens go into which pass, and what comes out.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "runtime/rank_model.h"
#include "runtime/request.h"
#include "runtime/tokenizer/tokenizer.h"

namespace llmctl::runtime {

/// Called for each token as it is chosen, one call at a time, of requests for a single sequence.
/// What it throws ends the generation.
using TokenCallback = std::function<void(size_t request, int32_t id)>;

/// Ends of the caller; any may be missing.
struct GenerateCallbacks {
  TokenCallback on_token;
  /// Called when a request is done, in the order in which they come to be.
  std::function<void(size_t request, const GenerateResult& result)> on_done;
  /// Asked before each token on the thread of the rank that samples: true ends all sequences with
  /// what they have. Only where that rank is in the caller's process.
  std::function<bool()> should_stop;
};

struct BatchOptions {
  int64_t chunk_tokens = 512;  ///< tokens that one pass takes at most
  int64_t batch_size = 0;      ///< sequences computed side by side at most; 0: as memory allows
  uint64_t kv_memory = 0;      ///< bytes of all ranks' caches together; 0: half of what is free
  int64_t kv_tokens = 0;       ///< room for so many tokens at least, as long as memory allows
  bool reuse_prefixes = true;  ///< compute full pages of equal beginnings once
  const Tokenizer* tokenizer = nullptr;  ///< for stop strings
};

/// What only rank 0 has. Null members are left alone.
struct BatchCaller {
  const GenerateCallbacks* callbacks = nullptr;
  GenerateReport* report = nullptr;
};

/// Generates `requests` on the rank that owns `model`. Collective over all ranks, which must be
/// given equal requests and options: they run the same loop in step, and the only thing that they
/// learn from each other, beside activations, is what the last stage's first rank has chosen.
/// `should_stop` may be empty. Throws kUsage naming the numbers when a request cannot fit into
/// kv_memory.
void generate_batch(RankModel& model, const RankComm& comm, const ModelConfig& config,
                    std::span<const GenerateRequest> requests, const BatchOptions& options,
                    const BatchCaller& caller, const std::function<bool()>& should_stop);

/// Receives rows [first_row, first_row + num_rows) of (num_tokens, vocab_size), in order.
using LogitsSink = std::function<void(int64_t first_row, int64_t num_rows, const float* logits)>;

/// Logits of every position of a prompt, on rank 0, the only one whose `sink` is called.
/// Collective as generate_batch.
void compute_prompt_logits(RankModel& model, const RankComm& comm, const ModelConfig& config,
                           std::span<const int32_t> ids, const BatchOptions& options,
                           const LogitsSink& sink);

}  // namespace llmctl::runtime
