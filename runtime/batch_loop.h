// One rank's part in generating a batch: which tokens go into which pass, and what comes out.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "runtime/decoder.h"
#include "runtime/request.h"

namespace llmctl::runtime {

/// Called for each token as it is chosen, one call at a time. What it throws ends the generation.
using TokenCallback = std::function<void(size_t request, int32_t id)>;

/// What only rank 0 has: the ends of the caller. Null members are left alone.
struct BatchCaller {
  const TokenCallback* on_token = nullptr;
  GenerateReport* report = nullptr;
};

/// Generates `requests` on the rank that owns `decoder`. Collective over all ranks, which must be
/// given equal requests and chunk_tokens: they run the same loop in step, and the only thing that
/// they learn from each other, beside activations, is what the last stage's first rank has chosen.
void generate_batch(Decoder& decoder, const RankComm& comm, const ModelConfig& config,
                    std::span<const GenerateRequest> requests, int64_t chunk_tokens,
                    const BatchCaller& caller);

/// Receives rows [first_row, first_row + num_rows) of (num_tokens, vocab_size), in order.
using LogitsSink = std::function<void(int64_t first_row, int64_t num_rows, const float* logits)>;

/// Logits of every position of a prompt, on rank 0, the only one whose `sink` is called.
/// Collective as generate_batch.
void compute_prompt_logits(Decoder& decoder, const RankComm& comm, const ModelConfig& config,
                           std::span<const int32_t> ids, int64_t chunk_tokens,
                           const LogitsSink& sink);

}  // namespace llmctl::runtime
