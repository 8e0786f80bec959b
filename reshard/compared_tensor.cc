#include "reshard/compared_tensor.h"

#include <algorithm>

#include "kernels/convert.h"
#include "reshard/executor.h"

namespace llmctl::reshard {
namespace {

constexpr int64_t kBlockElements = int64_t{16} << 20;

}  // namespace

std::vector<std::string> compared_keys(const Model& model, bool multiplied_out) {
  std::vector<std::string> keys;
  for (const std::string& key : model.keys()) {
    if (Model::canonical_of(key).auxiliary) continue;
    if (!multiplied_out) {
      keys.push_back(key);
    } else if (key == "embed_narrow") {
      keys.push_back("embed");
    } else if (key == "project_out") {
      keys.push_back("head");
    } else if (key != "project_in" && key != "head_narrow") {
      keys.push_back(key);
    }
  }
  return keys;
}

DType stored_dtype(const Model& model, const std::string& key) {
  const SourcePiece& piece = model.pieces(key).front();
  return model.checkpoint().tensors[static_cast<size_t>(piece.tensor)].dtype;
}

ComparedTensor::ComparedTensor(const Model& model, const std::string& key)
    : model_(model), key_(key) {
  const Shape shape = canonical_shape(Model::canonical_of(key), model.sizes());
  count_ = shape.front();
  for (size_t a = 1; a < shape.size(); ++a) width_ *= shape[a];
  if (model.has(key)) {
    dtype_ = stored_dtype(model, key);
  } else {
    product_.emplace(model, find_product(model, key).value());
  }
}

int64_t ComparedTensor::step() const {
  // A product needs its left factor and what it is compared with rounded, too.
  const int64_t elements = product_ ? kBlockElements / 4 : kBlockElements;
  return std::max<int64_t>(1, elements / std::max<int64_t>(1, width_));
}

void ComparedTensor::read(int64_t row, int64_t n, std::vector<float>& out,
                          std::vector<double>* lengths) const {
  out.resize(static_cast<size_t>(n * width_));
  if (!product_) return read_canonical_rows(model_, key_, row, n, out);
  if (lengths != nullptr) lengths->resize(static_cast<size_t>(n));
  product_->read(row, n, out, lengths != nullptr ? std::span(*lengths) : std::span<double>());
}

void round_to(std::vector<float>& values, DType dtype, std::vector<std::byte>& scratch) {
  scratch.resize(values.size() * dtype_bytes(dtype));
  const auto n = static_cast<int64_t>(values.size());
  kernels::convert(scratch.data(), dtype, values.data(), DType::F32, n, kernels::Overflow::kInf);
  kernels::convert(values.data(), DType::F32, scratch.data(), dtype, n, kernels::Overflow::kInf);
}

}  // namespace llmctl::reshard
