#include "reshard/compare.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <set>

#include <xxhash.h>

#include "formats/core/cancel.h"
#include "formats/core/error.h"
#include "formats/core/thread_pool.h"
#include "kernels/convert.h"
#include "reshard/box.h"
#include "reshard/executor.h"

namespace llmctl::reshard {
namespace {

constexpr int64_t kBlockElements = int64_t{16} << 20;

std::string hex(XXH128_hash_t hash) {
  XXH128_canonical_t bytes;
  XXH128_canonicalFromHash(&bytes, hash);
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const unsigned char byte : bytes.digest) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

struct Rows {
  int64_t count = 1, width = 1;  // the slowest axis, and elements per index of it
  int64_t step() const {
    return std::max<int64_t>(1, kBlockElements / std::max<int64_t>(1, width));
  }
};

Rows rows_of(const Model& model, const std::string& key) {
  const Shape shape = canonical_shape(Model::canonical_of(key), model.sizes());
  Rows rows;
  rows.count = shape.front();
  for (size_t a = 1; a < shape.size(); ++a) rows.width *= shape[a];
  return rows;
}

std::vector<std::string> compared_keys(const Model& model) {
  std::vector<std::string> keys;
  for (const std::string& key : model.keys()) {
    if (!Model::canonical_of(key).auxiliary) keys.push_back(key);
  }
  return keys;
}

DType dtype_of(const Model& model, const std::string& key) {
  const SourcePiece& piece = model.pieces(key).front();
  return model.checkpoint().tensors[static_cast<size_t>(piece.tensor)].dtype;
}

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

/// Values that a format stores divided by a tp which is no power of two come back a rounding off.
double rounding_of_step(const Model& model, const std::string& key) {
  const int tp = model.checkpoint().tensor_parallel_size;
  if (model.pieces(key).front().step != Step::kDivideByTp || (tp & (tp - 1)) == 0) return 0;
  switch (dtype_of(model, key)) {
    case DType::F16:
      return 0x1p-9;
    case DType::BF16:
      return 0x1p-6;
    default:
      return 0x1p-22;
  }
}

/// values rounded to `dtype` and widened again.
void round_to(std::vector<float>& values, DType dtype, std::vector<std::byte>& scratch) {
  scratch.resize(values.size() * dtype_bytes(dtype));
  const auto n = static_cast<int64_t>(values.size());
  kernels::convert(scratch.data(), dtype, values.data(), DType::F32, n, kernels::Overflow::kInf);
  kernels::convert(values.data(), DType::F32, scratch.data(), dtype, n, kernels::Overflow::kInf);
}

struct Comparison {
  uint64_t different = 0;                          // as they are
  uint64_t first_rounded = 0, second_rounded = 0;  // after rounding that one to the other's dtype
  double max_abs = 0;
};

void compare_block(const std::vector<float>& a, const std::vector<float>& b, DType a_dtype,
                   DType b_dtype, const Tolerance& tolerance, Comparison& result) {
  uint64_t different = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (same_value(a[i], b[i], tolerance)) continue;
    ++different;
    const double distance = std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    result.max_abs =
        std::max(result.max_abs,
                 std::isfinite(distance) ? distance : std::numeric_limits<double>::infinity());
  }
  result.different += different;
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

}  // namespace

ModelDigest digest(const Model& model, int jobs) {
  check_replicas(model);
  const std::vector<std::string> keys = compared_keys(model);
  ModelDigest result;
  result.tensors.resize(keys.size());
  ThreadPool pool(jobs);
  pool.parallel_for(static_cast<int64_t>(keys.size()), [&](int64_t i) {
    const std::string& key = keys[static_cast<size_t>(i)];
    const Rows rows = rows_of(model, key);
    static thread_local std::vector<float> block;
    XXH3_state_t* state = XXH3_createState();
    const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> owner(state, XXH3_freeState);
    XXH3_128bits_reset(state);
    for (int64_t row = 0; row < rows.count; row += rows.step()) {
      throw_if_cancelled();
      const int64_t n = std::min(rows.step(), rows.count - row);
      block.resize(static_cast<size_t>(n * rows.width));
      read_canonical_rows(model, key, row, n, block);
      // -0 and 0 are told apart, NaNs by their bits: the digest is of the values as stored.
      XXH3_128bits_update(state, block.data(), block.size() * sizeof(float));
    }
    result.tensors[static_cast<size_t>(i)] = {key, hex(XXH3_128bits_digest(state))};
  });
  std::vector<TensorDigest> sorted = result.tensors;
  std::sort(sorted.begin(), sorted.end(),
            [](const TensorDigest& a, const TensorDigest& b) { return a.key < b.key; });
  std::string lines;
  for (const TensorDigest& tensor : sorted) lines += tensor.key + " " + tensor.digest + "\n";
  result.digest = hex(XXH3_128bits(lines.data(), lines.size()));
  return result;
}

ModelDiff diff(const Model& first, const Model& second, const DiffOptions& options) {
  check_replicas(first);
  check_replicas(second);
  std::vector<std::string> keys = compared_keys(first);
  const std::set<std::string> in_first(keys.begin(), keys.end());
  for (const std::string& key : compared_keys(second)) {
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
    if (!first.has(key) || !second.has(key)) {
      found[i] = TensorDifference{
          first.has(key) ? Kind::kOnlyInFirst : Kind::kOnlyInSecond, key, "", 0, 0, 0};
      return;
    }
    const Shape a_shape = canonical_shape(Model::canonical_of(key), first.sizes());
    const Shape b_shape = canonical_shape(Model::canonical_of(key), second.sizes());
    if (a_shape != b_shape) {
      const IndexBox a = IndexBox::whole(a_shape), b = IndexBox::whole(b_shape);
      found[i] = TensorDifference{Kind::kShape, key, a.text() + " and " + b.text(), 0, 0, 0};
      return;
    }
    static thread_local std::vector<float> a, b;
    const Rows rows = rows_of(first, key);
    const DType a_dtype = dtype_of(first, key), b_dtype = dtype_of(second, key);
    Comparison comparison;
    const Tolerance tolerance{
        options.tolerance,
        options.exact ? 0 : rounding_of_step(first, key) + rounding_of_step(second, key)};
    for (int64_t row = 0; row < rows.count; row += rows.step()) {
      throw_if_cancelled();
      const int64_t n = std::min(rows.step(), rows.count - row);
      a.resize(static_cast<size_t>(n * rows.width));
      b.resize(a.size());
      read_canonical_rows(first, key, row, n, a);
      read_canonical_rows(second, key, row, n, b);
      compare_block(a, b, a_dtype, b_dtype, tolerance, comparison);
    }
    if (comparison.different == 0) return;
    if (!options.exact && a_dtype != b_dtype &&
        (comparison.first_rounded == 0 || comparison.second_rounded == 0)) {
      rounded[i] = 1;
      return;
    }
    found[i] = TensorDifference{Kind::kValues,
                                key,
                                "",
                                comparison.different,
                                static_cast<uint64_t>(rows.count * rows.width),
                                comparison.max_abs};
  });
  for (size_t i = 0; i < keys.size(); ++i) {
    if (found[i]) result.differences.push_back(*found[i]);
    result.num_rounded += static_cast<uint64_t>(rounded[i]);
  }
  return result;
}

void check_replicas(const Model& model) {
  for (const std::string& key : model.keys()) {
    const std::vector<SourcePiece>& pieces = model.pieces(key);
    for (size_t j = 1; j < pieces.size(); ++j) {
      for (size_t i = 0; i < j; ++i) {
        const auto shared = intersect(IndexBox::of(pieces[i].piece), IndexBox::of(pieces[j].piece));
        if (!shared) continue;
        const auto read = [&](const SourcePiece& source) {
          return read_box(model, source, *shared);
        };
        if (read(pieces[i]) == read(pieces[j])) continue;
        const auto& tensors = model.checkpoint().tensors;
        throw_invalid(model.checkpoint().path.string(),
                      stored_name(tensors[static_cast<size_t>(pieces[i].tensor)]) + " and " +
                          stored_name(tensors[static_cast<size_t>(pieces[j].tensor)]) +
                          " should hold the same values of '" + key + "', and differ",
                      "the ranks are not of one checkpoint");
      }
    }
  }
}

}  // namespace llmctl::reshard
