// Rotary angles: the cosines and sines that turn a token's queries and keys.
#pragma once

#include <cstdint>
#include <vector>

#include "reshard/model_config.h"

namespace llmctl::runtime {

/// One model's rotary frequencies under its scaling kind. Computed in F32, step by step as
/// transformers' modeling_rope_utils.py does, because angles of far positions magnify any
/// difference; with rope_in_bf16, frequency, position, angle, cosine and sine are each rounded to
/// BF16, which makes far positions equal. Not thread-safe (it keeps the frequencies of the last
/// length).
class Rope {
 public:
  /// Requires: rotary_dim even. Throws kInvalidInput for a scaling kind that is not known and for
  /// longrope factors that are not rotary_dim / 2 many.
  explicit Rope(const ModelConfig& config);

  int64_t num_pairs() const { return num_pairs_; }
  /// What cosines and sines are multiplied by (yarn, longrope); 1 for the others.
  float attention_scaling() const { return attention_scaling_; }

  /// Two lengths with the same key share their frequencies.
  int64_t length_key(int64_t length) const;

  /// Frequencies for a sequence of `length` tokens (only dynamic and longrope depend on it).
  const std::vector<float>& frequencies(int64_t length);

  /// The row of one token, rotary_dim / 2 wide. `length` is the number of tokens its sequence has
  /// when the token is computed: the whole prompt during prefill, position + 1 during decode.
  void fill(float* cos, float* sin, int64_t position, int64_t length);

 private:
  std::vector<float> powers(float base) const;  ///< base^(2i / rotary_dim)
  std::vector<float> compute(int64_t length) const;

  RopeScaling scaling_;
  int64_t rotary_dim_ = 0, num_pairs_ = 0;
  int64_t max_positions_ = 0, original_positions_ = 0;
  double theta_ = 10000.0;
  float attention_scaling_ = 1.0F;
  bool in_bf16_ = false;
  int64_t cached_key_ = -1;
  std::vector<float> cached_;
};

}  // namespace llmctl::runtime
