#include "reshard/compare.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <set>

#include "formats/core/cancel.h"
#include "formats/core/thread_pool.h"
#include "kernels/convert.h"
#include "reshard/box.h"
#include "reshard/compared_tensor.h"

namespace llmctl::reshard {
namespace {

/// How far apart two values may be and still be the same.
struct Tolerance {
  double absolute = 0, relative = 0;
};

bool same_value(float a, float b, const Tolerance& tolerance) {
  if (a == b) return true;
  if (std::isnan(a) && std::isnan(b)) return true;
  const double x = a, y = b;
  return std::isfinite(a) && std::isfinite(b) &&
         std::fabs(x - y) <=
             tolerance.absolute + tolerance.relative * std::max(std::fabs(x), std::fabs(y));
}

/// Values that a format stores divided by tp come back a rounding off, where tp is no power of two
/// or the quotient is a subnormal half.
Tolerance rounding_of_step(const Model& model, const std::string& key) {
  const int tp = model.checkpoint().tensor_parallel_size;
  if (tp == 1 || model.pieces(key).front().step != Step::kDivideByTp) return {};
  const bool is_exact = (tp & (tp - 1)) == 0;
  switch (stored_dtype(model, key)) {
    case DType::F16:
      return {tp * 0x1p-25, is_exact ? 0 : 0x1p-9};
    case DType::BF16:
      return {0, is_exact ? 0 : 0x1p-6};
    default:
      return {0, is_exact ? 0 : 0x1p-22};
  }
}

struct Comparison {
  uint64_t different = 0;                          // as they are
  uint64_t first_rounded = 0, second_rounded = 0;  // after rounding that one to the other's dtype
  bool is_rounded = false;                         // the same, and not to the last bit
  double max_abs = 0;

  void add_difference(float a, float b) {
    ++different;
    const double distance = std::fabs(static_cast<double>(a) - static_cast<double>(b));
    max_abs = std::max(
        max_abs, std::isfinite(distance) ? distance : std::numeric_limits<double>::infinity());
  }
};

void compare_block(const std::vector<float>& a, const std::vector<float>& b, DType a_dtype,
                   DType b_dtype, const Tolerance& tolerance, Comparison& result) {
  const uint64_t before = result.different;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!same_value(a[i], b[i], tolerance)) result.add_difference(a[i], b[i]);
  }
  const uint64_t different = result.different - before;
  if (different == 0 || a_dtype == b_dtype) return;
  const auto count = [&](const std::vector<float>& x, const std::vector<float>& y, DType dtype) {
    if (!kernels::can_convert(DType::F32, dtype)) return different;
    std::vector<float> rounded = x;
    std::vector<std::byte> scratch;
    round_to(rounded, dtype, scratch);
    uint64_t n = 0;
    for (size_t i = 0; i < y.size(); ++i) n += same_value(rounded[i], y[i], tolerance) ? 0 : 1;
    return n;
  };
  result.first_rounded += count(a, b, b_dtype);
  result.second_rounded += count(b, a, a_dtype);
}

/// `off`: by how much values may differ that a format stores divided.
Comparison compare_stored(const ComparedTensor& first, const ComparedTensor& second,
                          const Tolerance& off, const DiffOptions& options) {
  Tolerance tolerance{options.tolerance, 0};
  if (!options.exact) {
    tolerance.absolute += off.absolute;
    tolerance.relative = off.relative;
  }
  static thread_local std::vector<float> a, b;
  Comparison result;
  for (int64_t row = 0; row < first.count(); row += first.step()) {
    throw_if_cancelled();
    const int64_t n = std::min(first.step(), first.count() - row);
    first.read(row, n, a);
    second.read(row, n, b);
    compare_block(a, b, first.dtype(), second.dtype(), tolerance, result);
  }
  if (result.different > 0 && !options.exact && first.dtype() != second.dtype() &&
      (result.first_rounded == 0 || result.second_rounded == 0)) {
    result.different = 0;
    result.is_rounded = true;
  }
  return result;
}

/// Half a unit in the last place of a dtype, for normal numbers and below them.
Tolerance rounding_of(DType dtype) {
  switch (dtype) {
    case DType::F16:
      return {0x1p-25, 0x1p-11};
    case DType::BF16:
      return {0x1p-134, 0x1p-8};
    default:
      return {0x1p-150, 0x1p-24};
  }
}

/// A product with what another program, or our own, may have stored for it.
Comparison compare_product(const ComparedTensor& product, const ComparedTensor& stored,
                           const DiffOptions& options) {
  static thread_local std::vector<float> values, rounded, other;
  std::vector<std::byte> scratch;
  std::vector<double> row_lengths;
  const std::vector<double> column_lengths = product.product()->column_lengths();
  // Summing k terms in F32, in any order, is off by at most k * 2^-24 times the sum of their
  // magnitudes, and that is at most the product of the two vectors' lengths.
  const double summing = static_cast<double>(product.product()->k()) * 0x1p-24;
  const Tolerance rounding = rounding_of(stored.dtype());
  const Tolerance asked{options.tolerance, 0};
  Comparison result;
  for (int64_t row = 0; row < product.count(); row += product.step()) {
    throw_if_cancelled();
    const int64_t n = std::min(product.step(), product.count() - row);
    product.read(row, n, values, &row_lengths);
    stored.read(row, n, other);
    rounded = values;
    if (kernels::can_convert(DType::F32, stored.dtype())) {
      round_to(rounded, stored.dtype(), scratch);
    }
    for (size_t i = 0; i < values.size(); ++i) {
      if (other[i] == values[i]) continue;
      result.is_rounded = true;
      if (same_value(rounded[i], other[i], asked)) continue;
      const double off = summing * row_lengths[i / column_lengths.size()] *
                         column_lengths[i % column_lengths.size()];
      const Tolerance allowed{options.tolerance + rounding.absolute + off, rounding.relative};
      if (options.exact || !same_value(values[i], other[i], allowed)) {
        result.add_difference(rounded[i], other[i]);
      }
    }
  }
  return result;
}

}  // namespace

ModelDiff diff(const Model& first, const Model& second, const DiffOptions& options) {
  check_replicas(first);
  check_replicas(second);
  const bool as_products = is_factored(first) != is_factored(second);
  std::vector<std::string> keys = compared_keys(first, as_products);
  const std::set<std::string> in_first(keys.begin(), keys.end());
  std::set<std::string> in_second;
  for (const std::string& key : compared_keys(second, as_products)) {
    in_second.insert(key);
    if (in_first.count(key) == 0) keys.push_back(key);
  }
  ModelDiff result;
  result.num_tensors = keys.size();
  std::vector<std::optional<TensorDifference>> found(keys.size());
  std::vector<char> rounded(keys.size(), 0);
  ThreadPool pool(options.jobs);
  pool.parallel_for(static_cast<int64_t>(keys.size()), [&](int64_t index) {
    const auto i = static_cast<size_t>(index);
    const std::string& key = keys[i];
    using Kind = TensorDifference::Kind;
    // Multiplied out, a head may turn out to be the embedding and be stored as that.
    const auto stands_for = [&](const std::set<std::string>& has) {
      return as_products && key == "head" && has.count(key) == 0 ? "embed" : key;
    };
    const std::string first_key = stands_for(in_first), second_key = stands_for(in_second);
    if (in_first.count(first_key) == 0 || in_second.count(second_key) == 0) {
      const bool only_first = in_first.count(first_key) != 0;
      found[i] =
          TensorDifference{only_first ? Kind::kOnlyInFirst : Kind::kOnlyInSecond, key, "", 0, 0, 0};
      return;
    }
    const Shape a_shape = canonical_shape(Model::canonical_of(key), first.sizes());
    const Shape b_shape = canonical_shape(Model::canonical_of(key), second.sizes());
    if (a_shape != b_shape) {
      const IndexBox a = IndexBox::whole(a_shape), b = IndexBox::whole(b_shape);
      found[i] = TensorDifference{Kind::kShape, key, a.text() + " and " + b.text(), 0, 0, 0};
      return;
    }
    const ComparedTensor a(first, first_key), b(second, second_key);
    Comparison comparison;
    if (a.product() != nullptr) {
      comparison = compare_product(a, b, options);
    } else if (b.product() != nullptr) {
      comparison = compare_product(b, a, options);
    } else {
      const Tolerance one = rounding_of_step(first, first_key);
      const Tolerance two = rounding_of_step(second, second_key);
      const Tolerance off{one.absolute + two.absolute, one.relative + two.relative};
      comparison = compare_stored(a, b, off, options);
    }
    if (comparison.different == 0) {
      rounded[i] = comparison.is_rounded ? 1 : 0;
      return;
    }
    found[i] = TensorDifference{Kind::kValues,
                                key,
                                "",
                                comparison.different,
                                static_cast<uint64_t>(a.count() * a.width()),
                                comparison.max_abs};
  });
  for (size_t i = 0; i < keys.size(); ++i) {
    if (found[i]) result.differences.push_back(*found[i]);
    result.num_rounded += static_cast<uint64_t>(rounded[i]);
  }
  return result;
}

}  // namespace llmctl::reshard
