// What a caller asks the engine to generate, and what comes back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "reshard/model_config.h"
#include "runtime/sampler.h"

namespace llmctl::runtime {

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

/// Requests as bytes, for the ranks that did not read them. What `encode_requests` makes,
/// `decode_requests` gives back equal, in a process of the same binary.
std::vector<std::byte> encode_requests(std::span<const GenerateRequest> requests);
std::vector<GenerateRequest> decode_requests(std::span<const std::byte> bytes);

}  // namespace llmctl::runtime
