// What a caller asks the engine to generate, and what comes back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "reshard/model_config.h"
#include "runtime/logits_processor.h"
#include "runtime/sampler.h"

namespace llmctl::runtime {

/// When a beam search ends before max_new_tokens, once num_beams sequences have ended.
enum class EarlyStopping : uint8_t {
  kHeuristic,  ///< no running beam, at its present length, can beat the worst of them
  kAlways,     ///< at once
  kNever,      ///< no running beam can beat it at any length that it may reach
};

/// As in transformers' generate, and FasterTransformer's beam_search_diversity_rate.
struct BeamParams {
  int64_t num_beams = 1;        ///< 1: no beam search
  double length_penalty = 1.0;  ///< score = sum of log probabilities / length^length_penalty
  double diversity = 0.0;  ///< added, times i, to the i-th best continuation of a beam (from 0)
  EarlyStopping early_stopping = EarlyStopping::kHeuristic;
};

/// What becomes of a sequence that needs more positions than the model has.
enum class ContextOverflow : uint8_t {
  kRefuse,  ///< the request is refused before it runs
  kSlide,   ///< whenever the positions are used up, all tokens but the last half of them are
            ///< forgotten, and these are computed again from position 0
};

struct GenerateRequest {
  std::vector<int32_t> prompt_ids;  ///< at least one, each below vocab_size
  int64_t max_new_tokens = 16;
  SamplingParams sampling;
  LogitsRules rules;
  std::vector<int64_t> stop_ids;          ///< the first of these to be generated ends the sequence
  std::vector<std::string> stop_strings;  ///< as does one of these in the text; needs a tokenizer
  int64_t num_logprobs = -1;  ///< 0: of the tokens chosen; n: of the n likeliest, too; -1: none
  int64_t num_sequences = 1;  ///< drawn independently, or the best so many of the beams
  BeamParams beams;
  ContextOverflow overflow = ContextOverflow::kRefuse;

  /// Sequences that are computed side by side.
  int64_t width() const { return beams.num_beams > 1 ? beams.num_beams : num_sequences; }
};

/// Throws kUsage for an empty prompt, an id that the vocabulary lacks, options out of range or that
/// exclude each other, or prompt + max_new_tokens beyond the model's positions (the last token
/// generated needs none).
void check_request(const GenerateRequest& request, const ModelConfig& config);

enum class StopReason : uint8_t { kLength, kStopId, kStopString, kInterrupted };

struct GenerateResult {
  std::vector<int32_t> ids;  ///< generated, the stop id or the last one of a stop string included
  StopReason stop_reason = StopReason::kLength;
  // With num_logprobs >= 0 or beams; natural logarithms of the model's own softmax, before any
  // option.
  std::vector<float> logprobs;             ///< of ids
  std::vector<TokenLogprob> top_logprobs;  ///< (ids, num_logprobs), likeliest first
  double cumulative_logprob = 0;           ///< the sum of logprobs
  double score = 0;                        ///< of a beam search
  std::vector<GenerateResult>
      others;  ///< num_sequences - 1 more; of a beam search in order of score
};

struct GenerateReport {
  std::vector<GenerateResult> results;  ///< in order of the requests
  double prefill_ms = 0;                ///< to the first token of the last prompt
  double decode_ms = 0;                 ///< of everything after
  int64_t prompt_tokens = 0;
  int64_t reused_tokens = 0;   ///< of them, found in the cache
  int64_t decoded_tokens = 0;  ///< generated, less the first of each sequence
};

/// Requests as bytes, for the ranks that did not read them. What `encode_requests` makes,
/// `decode_requests` gives back equal, in a process of the same binary.
std::vector<std::byte> encode_requests(std::span<const GenerateRequest> requests);
std::vector<GenerateRequest> decode_requests(std::span<const std::byte> bytes);

}  // namespace llmctl::runtime
