// Canonical tensors that a model has only as two factors (OPT-350m's projections), multiplied out
// for what has no place for the factors.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "reshard/model.h"

namespace llmctl::reshard {

/// A tensor whose rows are products: left [rows, k] times right [k, columns].
struct RowProduct {
  std::string left;                  ///< canonical key
  std::string right;                 ///< canonical key
  bool right_is_transposed = false;  ///< right is stored [columns, k]
};

/// What stands for the canonical tensor `name` in a model that has only its factors. The head of
/// a model with tied embeddings is made of the embedding's left factor.
std::optional<RowProduct> find_product(const Model& model, const std::string& name);

/// Rows of a product, with the right factor in memory. Immutable; safe to share.
class ProductReader {
 public:
  /// `model` must outlive the reader.
  ProductReader(const Model& model, RowProduct product);

  int64_t num_rows() const { return num_rows_; }
  int64_t num_columns() const { return num_columns_; }

  /// Rows [first, first + count), as kernels::product computes them: the same bits on every
  /// machine. `lengths`, when not empty, receives the Euclidean length of each row of the left
  /// factor.
  void read(int64_t first, int64_t count, std::span<float> out,
            std::span<double> lengths = {}) const;

  /// The Euclidean length of each column of the right factor.
  std::vector<double> column_lengths() const;

  /// Terms of each sum.
  int64_t k() const { return k_; }

 private:
  const Model& model_;
  RowProduct product_;
  int64_t num_rows_ = 0, num_columns_ = 0, k_ = 0;
  std::vector<float> right_;  // (k, num_columns)
};

}  // namespace llmctl::reshard
