// Chooses the next token from a row of logits.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace llmctl::runtime {

/// How a token is drawn from a row of scores. Applied in this order, which is that of transformers'
/// logits warpers: temperature, top-k, top-p, min-p, typical-p. (Penalties and bans come before:
/// runtime/logits_processor.h.)
struct SamplingParams {
  double temperature = 0.0;  ///< 0: greedy, the others are then without effect
  int64_t top_k = 0;         ///< keep the k likeliest; 0: all
  double top_p = 1.0;        ///< keep the fewest of the likeliest whose mass reaches it
  double min_p = 0.0;        ///< keep what is at least this part of the likeliest's probability
  double typical_p = 1.0;    ///< keep the fewest of the most typical whose mass reaches it
  uint64_t seed = 0;
};

/// Throws kUsage naming the flag for a negative or non-finite temperature, a negative top_k, a
/// top_p or typical_p outside (0, 1], or a min_p outside [0, 1].
void check_sampling(const SamplingParams& params);

struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0;
};

/// Keeps the scratch of one thread's sampling, so that a call allocates nothing. Not thread-safe.
class Sampler {
 public:
  /// A token that may be drawn.
  struct Candidate {
    int32_t id = 0;
    double weight = 0;  ///< of the likeliest of all tokens: 1
  };

  explicit Sampler(int64_t vocab_size);

  /// The id chosen for `position` of its sequence. Equal logits count in index order, lowest
  /// first. The random number is a function of (seed, stream, position) alone, so a sequence does
  /// not depend on its neighbours in a batch. Throws kInvalidInput when a logit is NaN or
  /// +infinity, or all are -infinity.
  int32_t sample(const float* logits,  // (vocab_size)
                 const SamplingParams& params, int64_t position, uint32_t stream = 0);

  /// The index of the highest logit. Throws as `sample` does.
  int64_t find_best(const float* logits, int64_t position) const;

  /// What `sample` draws from at a temperature above 0, and in which order; valid until the next
  /// call. Weights are not normalised.
  std::span<const Candidate> candidates(const float* logits, const SamplingParams& params);

  /// Natural logarithms of softmax(logits): that of `chosen`, and the `top.size()` likeliest in
  /// order.
  float logprobs(const float* logits, int32_t chosen, std::span<TokenLogprob> top);

 private:
  void keep_typical(double mass);

  int64_t vocab_size_;
  std::vector<int32_t> order_;
  std::vector<Candidate> kept_;
  std::vector<double> distance_;
};

/// log(sum(exp(row))) of a row of finite or -infinite numbers, in F64 and in index order.
double log_sum_exp(const float* row, int64_t size);

/// Philox 4x32-10, a counter-based generator (Salmon et al., SC'11, "Parallel random numbers: as
/// easy as 1, 2, 3").
std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

}  // namespace llmctl::runtime
