// Penalties and bans: what changes a row of logits before a token is chosen from it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace llmctl::runtime {

/// Applied in this order: repetition, presence and frequency, bad words, minimum length.
struct LogitsRules {
  /// transformers' RepetitionPenaltyLogitsProcessor: the logit of every token that the prompt or
  /// what was generated holds is divided by it if positive, multiplied if negative. 1: none.
  double repetition_penalty = 1.0;
  /// As OpenAI defines them, over what was generated: logit - presence * (n > 0) - frequency * n.
  double presence_penalty = 0.0, frequency_penalty = 0.0;
  /// Sequences of ids, none empty: the last id is banned where those before it were just written
  /// (transformers' NoBadWordsLogitsProcessor).
  std::vector<std::vector<int32_t>> bad_words;
  /// Stop ids are banned until so many tokens have been generated.
  int64_t min_new_tokens = 0;
};

/// Throws kUsage naming the flag: a penalty out of range, an empty bad word or one with ids that
/// the vocabulary lacks, a negative minimum.
void check_logits_rules(const LogitsRules& rules, int64_t vocab_size);

/// Keeps the scratch of one thread, so that a call allocates nothing. Not thread-safe.
class LogitsProcessor {
 public:
  explicit LogitsProcessor(int64_t vocab_size);

  /// The row after `rules`: `row` itself when they change nothing, else this object's copy, valid
  /// until the next call. Throws kUsage when they leave no token.
  const float* process(const float* row,  // (vocab_size)
                       const LogitsRules& rules, std::span<const int32_t> prompt,
                       std::span<const int32_t> generated, std::span<const int64_t> stop_ids);

 private:
  int64_t vocab_size_;
  std::vector<float> row_;
  std::vector<int32_t> counts_;  // all 0 between calls
};

}  // namespace llmctl::runtime
