// Chooses the next token from a row of logits.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace llmctl::runtime {

/// Applied in this order: temperature, top-k, top-p.
struct SamplingParams {
  double temperature = 0.0;  ///< 0: greedy, the others are then without effect
  int64_t top_k = 0;         ///< keep the k likeliest; 0: all
  double top_p = 1.0;        ///< keep the fewest of the likeliest whose mass reaches it
  uint64_t seed = 0;
};

/// Throws kUsage naming the flag for a negative or non-finite temperature, a negative top_k, or a
/// top_p outside (0, 1].
void check_sampling(const SamplingParams& params);

/// Keeps the scratch of one thread's sampling, so that a call allocates nothing. Not thread-safe.
class Sampler {
 public:
  explicit Sampler(int64_t vocab_size);

  /// The id chosen for `position` of its sequence. Equal logits count in index order, lowest
  /// first. The random number is a function of (seed, position) alone, so a sequence does not
  /// depend on its neighbours in a batch. Throws kInvalidInput when a logit is NaN or +infinity,
  /// or all are -infinity.
  int32_t sample(const float* logits,  // (vocab_size)
                 const SamplingParams& params, int64_t position);

 private:
  int32_t draw(const float* logits, const SamplingParams& params, float highest, double u);

  int64_t vocab_size_;
  std::vector<int32_t> order_;
  std::vector<double> weights_;
};

/// Philox 4x32-10, a counter-based generator (Salmon et al., SC'11, "Parallel random numbers: as
/// easy as 1, 2, 3").
std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

}  // namespace llmctl::runtime
