// Seeded random weights: the value of every element of every canonical tensor, in any order.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace llmctl::reshard {

/// The values of one canonical tensor. A value depends on the seed, the tensor's key and the
/// element's row-major index among the canonical axes alone, so any layout of the tensor can be
/// made piece by piece. The same on every machine. Immutable; safe to share.
///
/// Values look like an initialiser's: a sum of three uniform ones, which is close to normal, of
/// standard deviation 0.02; for weights of norms 1 plus such a sum of deviation 2^-6. None is 0.
class RandomTensor {
 public:
  /// `key` as canonical_key spells it ("layers.3.q").
  RandomTensor(uint64_t seed, std::string_view key);

  /// out[i] = value of element first + i. Requires: first >= 0. Bound: arithmetic, some 4 cycles
  /// for an element.
  void fill(int64_t first, std::span<float> out) const;

 private:
  uint64_t key_ = 0;
  float step_ = 0, mean_ = 0;
};

}  // namespace llmctl::reshard
