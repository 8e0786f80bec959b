// Axis-aligned index boxes over a canonical tensor, and the set arithmetic that plans are made of.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "formats/core/checked.h"
#include "reshard/layout.h"

namespace llmctl::reshard {

/// Indices lo[a] <= i < lo[a] + n[a] along every axis a.
struct IndexBox {
  std::vector<int64_t> lo, n;

  static IndexBox whole(const Shape& shape) { return {Shape(shape.size(), 0), shape}; }
  static IndexBox of(const Piece& piece) { return {piece.lo, piece.n}; }

  bool is_empty() const;
  int64_t num_elements() const;
  /// "[0:4, 8:16]".
  std::string text() const;
};

/// Nothing when they share no index. Requires: same number of axes.
std::optional<IndexBox> intersect(const IndexBox& a, const IndexBox& b);

/// What of `boxes` lies outside `cut`, as disjoint boxes. Empty boxes vanish.
std::vector<IndexBox> subtract(const std::vector<IndexBox>& boxes, const IndexBox& cut);

}  // namespace llmctl::reshard
