// Stored tensors that repeat another one whole, as ranks do that each keep what is not split.
#pragma once

#include <string>
#include <vector>

#include "reshard/model.h"

namespace llmctl::reshard {

/// Which stored tensors have the same type, shape and meaning in every element. Immutable; safe to
/// share.
class WholeReplicas {
 public:
  explicit WholeReplicas(const Model& model);
  /// The tensors that repeat stored tensor `first`, when it is the first of them.
  const std::vector<int>& of(int first) const { return replicas_[static_cast<size_t>(first)]; }
  /// Whether the two are replicas of each other.
  bool are_the_same(int a, int b) const { return first_of(a) == first_of(b); }

 private:
  int first_of(int tensor) const { return first_[static_cast<size_t>(tensor)]; }

  std::vector<int> first_;                  // by stored tensor; itself when it repeats none
  std::vector<std::vector<int>> replicas_;  // by stored tensor
};

/// check_replicas of what `apart`, when not null, does not name: those are compared by who reads
/// them (ExecuteOptions::compare_replicas). Of `num_parts` parts of the work only number `part`.
void check_replicas(const Model& model, const WholeReplicas* apart, int part = 0,
                    int num_parts = 1);

/// Throws kInvalidInput: the two stored tensors should be replicas, and differ.
[[noreturn]] void throw_replicas_differ(const Model& model, int first, int second);

}  // namespace llmctl::reshard
