// The canonical tensors: the model's own, whatever file they came from, and the sizes of their
// axes.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/core/checked.h"
#include "reshard/model_config.h"

namespace llmctl::reshard {

/// One row of the table of canonical tensors.
struct CanonicalTensor {
  std::string_view name;
  /// Axis names, slowest first. `heads` and `d` never stand here: they are products (below).
  std::string_view axes;
  bool per_layer;
  /// Carried where a format has a place for it, but no part of the function that the model
  /// computes: left out of digests, written as zeros where a source lacks it.
  bool auxiliary = false;
};

/// Every canonical tensor that a layout may name.
std::span<const CanonicalTensor> canonical_table();

/// Null when there is none of that name.
const CanonicalTensor* find_canonical(std::string_view name);

/// Splits "kv group two half hidden" at blanks.
std::vector<std::string> split_words(std::string_view text);

/// Sizes of named axes for one model: kv, group, two, half, hidden, vocab, ffn, position, width,
/// and `lead`, the two rows in front of OPT's position table that only padding reads. Yuan's two
/// convolutions have `filter` (half of hidden), `tap` (previous token, this one), `one`, and inputs
/// per group `conv_in` and `conv_mid`. `heads`
/// stands for `kv group`, and `d` for `two half`: the first and second half of a head, which rotary
/// orders that pair neighbours store as `half two`.
class AxisSizes {
 public:
  explicit AxisSizes(const ModelConfig& config);
  /// For tests and user-made tables.
  explicit AxisSizes(std::map<std::string, int64_t, std::less<>> sizes)
      : sizes_(std::move(sizes)) {}

  /// Throws kInvalidInput for a name that no table knows.
  int64_t get(std::string_view axis) const;
  bool has(std::string_view axis) const;

 private:
  std::map<std::string, int64_t, std::less<>> sizes_;
};

/// The canonical tensor's shape over its axes.
Shape canonical_shape(const CanonicalTensor& tensor, const AxisSizes& sizes);

/// "layers.3.q", or "embed" for layer -1: how canonical tensors are named in digests and diffs.
std::string canonical_key(std::string_view name, int64_t layer);

/// Names of the canonical tensors that a model of this architecture has (per-layer ones stand for
/// every layer); `head` only when the head is not tied.
std::vector<std::string_view> expected_canonical(const ModelConfig& config);

}  // namespace llmctl::reshard
