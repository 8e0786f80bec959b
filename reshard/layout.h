// The layout notation: one line says how a stored tensor packs canonical ones.
// Grammar and meaning: docs/layout-notation.md.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "formats/core/checked.h"
#include "reshard/canonical.h"

namespace llmctl::reshard {

/// name [ "/tp" ] [ "[" k "/" n "]" ] [ "~" ]
struct Factor {
  std::string name;
  bool tensor_parallel = false;
  bool padded = false;
  int64_t part = 0, num_parts = 1;
};

/// One element of a list of axes: a factor, a parenthesised list, or a { | } of tensors.
struct LayoutNode {
  enum class Kind { kFactor, kGroup, kCat };
  Kind kind = Kind::kFactor;
  Factor factor;
  std::vector<LayoutNode> group;
  struct Branch {
    std::string tensor;
    std::vector<LayoutNode> axes;
  };
  std::vector<Branch> branches;
};

/// A parsed line. Immutable; safe to share.
struct Layout {
  std::string text;
  std::string tensor;  ///< of "tensor : axes"; empty when a cat names the tensors
  std::vector<LayoutNode> axes;

  /// Canonical names in the order of the line.
  std::vector<std::string> tensors() const;
  bool uses_tensor_parallel() const;
};

/// Throws kInvalidInput with the line, the column and what was expected there. Checks the line as
/// far as it can without sizes: known tensors, each axis of a tensor named exactly once.
Layout parse_layout(std::string_view line);

/// How one rank's stored tensor holds a part of one canonical tensor: along canonical axis a,
/// index lo[a] <= i < lo[a] + n[a] lies at offset + sum over a of (i - lo[a]) * stride[a].
struct Piece {
  std::string tensor;
  std::vector<int64_t> lo, n, stride;  ///< per canonical axis; stride in stored elements
  int64_t offset = 0;

  int64_t num_elements() const;
};

struct BoundLayout {
  Shape shape;                ///< the stored tensor's, padding included
  std::vector<Piece> pieces;  ///< disjoint in the stored tensor
};

struct BindOptions {
  int64_t tp = 1, rank = 0;
  /// Padded global sizes of `~` axes; the smallest multiple of tp when an axis is not here.
  std::map<std::string, int64_t, std::less<>> padded_sizes;
  /// The stored tensor, for a source: its shape gives the lengths of `~` axes and is checked
  /// against the layout (axes of size 1 do not count; a single axis of all elements always fits,
  /// for formats without shapes). Empty optional parts otherwise.
  const Shape* stored_shape = nullptr;
  const std::vector<int64_t>* stored_strides = nullptr;  ///< null or empty: row-major
};

/// What the layout means for one rank. Throws kUsage when tp cuts an axis that it does not divide
/// (naming the sizes that work), kInvalidInput when `stored_shape` contradicts the layout.
BoundLayout bind_layout(const Layout& layout, const AxisSizes& sizes, const BindOptions& options);

}  // namespace llmctl::reshard
