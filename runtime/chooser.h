// From the logits of a pass to the tokens that its sequences continue with.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/logits_processor.h"
#include "runtime/pass.h"
#include "runtime/sampler.h"
#include "runtime/sequence.h"

namespace llmctl::runtime {

/// The answers to the asks of one pass, in their order: for a group that draws several sequences
/// and has just its prompt, one for each; for a beam search num_candidates for all beams together.
/// Every rank lays them out, one fills them, all get them by broadcast.
struct Choices {
  std::vector<Choice> choices;
  std::vector<TokenLogprob> top;  ///< num_logprobs for each choice, where asked for

  /// Makes room for the answers to `pass`.
  void lay_out(const Pass& pass);
};

/// How many of `pass`'s asks, from `first` on, belong to the same group.
size_t count_asks(const Pass& pass, size_t first);
/// Choices that answer the asks of a group.
size_t count_choices(const Group& group, size_t num_asks);

/// Used on the rank that samples. Not thread-safe.
class Chooser {
 public:
  /// `tokenizer` is for the stop strings of beam searches; null when no request has any.
  Chooser(int64_t vocab_size, const Tokenizer* tokenizer);

  /// Answers the asks [first, first + num_rows) of `pass` from their rows of logits. Blocks of a
  /// pass must come in order. Throws what Sampler and LogitsProcessor throw.
  void answer(const Pass& pass, size_t first, size_t num_rows,
              const float* logits,  // (num_rows, vocab_size)
              bool interrupted, Choices& answers);
  /// To be called before the first block of a pass.
  void begin() { next_choice_ = next_top_ = 0; }

 private:
  void draw(Group& group, int32_t member, const float* row, bool interrupted, Choices& answers);
  void collect(Group& group, int32_t member, const float* row);
  void pick_best(Group& group, bool interrupted, Choices& answers);
  bool ends_text(const Group& group, const Choice& choice) const;

  struct Candidate {
    double key = 0;  ///< the score that it is chosen by
    Choice choice;
  };

  int64_t vocab_size_;
  const Tokenizer* tokenizer_;
  Sampler sampler_;
  LogitsProcessor processor_;
  std::vector<float> scores_;
  std::vector<int32_t> order_;
  std::vector<Candidate> candidates_;  // of the group at hand
  size_t next_choice_ = 0, next_top_ = 0;
};

}  // namespace llmctl::runtime
