#include "reshard/product.h"

#include <algorithm>
#include <cmath>

#include "kernels/copy_box.h"
#include "kernels/product.h"
#include "reshard/executor.h"

namespace llmctl::reshard {

std::optional<RowProduct> find_product(const Model& model, const std::string& name) {
  if (name == "embed" && model.has("embed_narrow") && model.has("project_in")) {
    return RowProduct{"embed_narrow", "project_in", true};
  }
  const std::string head = model.has("head_narrow") ? "head_narrow" : "embed_narrow";
  if (name == "head" && model.has(head) && model.has("project_out")) {
    return RowProduct{head, "project_out", false};
  }
  return std::nullopt;
}

ProductReader::ProductReader(const Model& model, RowProduct product)
    : model_(model), product_(std::move(product)) {
  const Shape left = canonical_shape(Model::canonical_of(product_.left), model.sizes());
  const Shape right = canonical_shape(Model::canonical_of(product_.right), model.sizes());
  num_rows_ = left[0];
  k_ = left[1];
  num_columns_ = product_.right_is_transposed ? right[0] : right[1];
  right_.resize(static_cast<size_t>(right[0] * right[1]));
  read_canonical_rows(model, product_.right, 0, right[0], right_);
  if (!product_.right_is_transposed) return;
  std::vector<float> turned(right_.size());
  const kernels::Box box{2, {k_, num_columns_}, {1, k_}, {num_columns_, 1}};
  kernels::copy_box(turned.data(), DType::F32, right_.data(), DType::F32, box,
                    kernels::Overflow::kInf);
  right_.swap(turned);
}

void ProductReader::read(int64_t first, int64_t count, std::span<float> out,
                         std::span<double> lengths) const {
  std::vector<float> left(static_cast<size_t>(count * k_));
  read_canonical_rows(model_, product_.left, first, count, left);
  kernels::product(out.data(), left.data(), right_.data(), count, k_, num_columns_);
  if (lengths.empty()) return;
  for (int64_t i = 0; i < count; ++i) {
    double sum = 0;
    for (int64_t t = 0; t < k_; ++t) {
      const double x = left[static_cast<size_t>(i * k_ + t)];
      sum += x * x;
    }
    lengths[static_cast<size_t>(i)] = std::sqrt(sum);
  }
}

std::vector<double> ProductReader::column_lengths() const {
  std::vector<double> lengths(static_cast<size_t>(num_columns_));
  for (size_t at = 0; at < right_.size(); ++at) {
    const double x = right_[at];
    lengths[at % lengths.size()] += x * x;
  }
  for (double& length : lengths) length = std::sqrt(length);
  return lengths;
}

}  // namespace llmctl::reshard
