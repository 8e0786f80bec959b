// Canonical tensors as diff and digest see them: as stored, or multiplied out of their factors.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "reshard/model.h"
#include "reshard/product.h"

namespace llmctl::reshard {

/// Whether the model has its embedding and head in factors.
inline bool is_factored(const Model& model) { return model.has("embed_narrow"); }

/// Keys of what is compared, in canonical order; with `multiplied_out`, which requires a factored
/// model to change anything, the products in place of their factors. No auxiliary tensors.
std::vector<std::string> compared_keys(const Model& model, bool multiplied_out);

/// The dtype that (the first part of) a tensor of the model is stored in.
DType stored_dtype(const Model& model, const std::string& key);

/// One tensor as it is compared. Immutable; `model` must outlive it.
class ComparedTensor {
 public:
  /// Requires: the model has `key`, or its factors.
  ComparedTensor(const Model& model, const std::string& key);

  int64_t count() const { return count_; }  ///< along the slowest axis
  int64_t width() const { return width_; }  ///< elements per index of it
  int64_t step() const;                     ///< indices of one block, of at most 64 MiB
  /// Null for a tensor that is stored.
  const ProductReader* product() const { return product_ ? &*product_ : nullptr; }
  /// F32 for a product.
  DType dtype() const { return dtype_; }

  /// Resizes `out` and fills it. `lengths`: see ProductReader::read; left alone for a stored
  /// tensor.
  void read(int64_t row, int64_t n, std::vector<float>& out,
            std::vector<double>* lengths = nullptr) const;

 private:
  const Model& model_;
  std::string key_;
  std::optional<ProductReader> product_;
  int64_t count_ = 1, width_ = 1;
  DType dtype_ = DType::F32;
};

/// Rounds to `dtype` and widens again; overflow becomes infinity.
void round_to(std::vector<float>& values, DType dtype, std::vector<std::byte>& scratch);

}  // namespace llmctl::reshard
