// Whether two checkpoints hold the same model, and a fingerprint that no layout changes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "reshard/model.h"

namespace llmctl::reshard {

struct TensorDigest {
  std::string key;     ///< canonical
  std::string digest;  ///< 32 hexadecimal digits
};

struct ModelDigest {
  std::string digest;  ///< of all tensors, by key
  std::vector<TensorDigest> tensors;
};

/// XXH3-128 of each canonical tensor's values as F32 in canonical order: the same for the same
/// values in any format, layout, tp and shard size, and in any dtype that holds them exactly. The
/// whole is the XXH3-128 of the "key digest" lines in order of key. Padding and auxiliary tensors
/// do not count. Memory: 64 MiB per job.
///
/// Factors that some formats have no place for (OPT-350m's projections) count as the products that
/// such formats store instead, `embed` and `head`, rounded to the dtype of the factors: the one
/// they are stored in, or when that is F32, BF16 or F16 where one of these holds all their values.
ModelDigest digest(const Model& model, int jobs);

struct TensorDifference {
  enum class Kind { kOnlyInFirst, kOnlyInSecond, kShape, kValues };
  Kind kind = Kind::kValues;
  std::string key;
  std::string detail;          ///< for kShape: both shapes
  uint64_t num_different = 0;  ///< elements
  uint64_t num_elements = 0;
  double max_abs = 0;  ///< largest |a - b|; infinity where one is not finite
};

struct DiffOptions {
  int jobs = 1;
  double tolerance = 0;  ///< |a - b| up to this is no difference
  /// By default tensors of different dtypes are the same when one is the other, rounded, and what
  /// is stored divided by a tp that is no power of two may be off by that rounding; with exact
  /// tensors must hold the same values. A product of factors on one side is the same as what the
  /// other stores when it is that product rounded to the stored dtype; by default also when it is
  /// off by as much as summing the product in F32, in another order, may be.
  bool exact = false;
};

struct ModelDiff {
  uint64_t num_tensors = 0;
  uint64_t num_rounded = 0;                   ///< equal only after rounding, or as products
  std::vector<TensorDifference> differences;  ///< in canonical order
};

/// Compares canonical tensors; where only one model has an embedding and a head in factors, their
/// products. Memory: 128 MiB per job.
ModelDiff diff(const Model& first, const Model& second, const DiffOptions& options);

}  // namespace llmctl::reshard
