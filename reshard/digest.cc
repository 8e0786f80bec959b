#include <algorithm>
#include <cstring>
#include <memory>

#include <xxhash.h>

#include "formats/core/cancel.h"
#include "formats/core/thread_pool.h"
#include "reshard/compare.h"
#include "reshard/compared_tensor.h"

namespace llmctl::reshard {
namespace {

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

bool holds_all_values(const Model& model, const std::string& key, DType dtype) {
  const ComparedTensor tensor(model, key);
  std::vector<float> values, rounded;
  std::vector<std::byte> scratch;
  for (int64_t row = 0; row < tensor.count(); row += tensor.step()) {
    tensor.read(row, std::min(tensor.step(), tensor.count() - row), values);
    rounded = values;
    round_to(rounded, dtype, scratch);
    if (std::memcmp(values.data(), rounded.data(), values.size() * sizeof(float)) != 0) {
      return false;
    }
  }
  return true;
}

/// The dtype to which the digest rounds a product: the one that a conversion stores it in, and
/// still that after the factors have been widened.
DType dtype_of_factors(const Model& model, const std::string& key) {
  const RowProduct product = find_product(model, key).value();
  const DType left = stored_dtype(model, product.left), right = stored_dtype(model, product.right);
  if (left == right && (left == DType::F16 || left == DType::BF16)) return left;
  // BF16 first: a few BF16 values are often F16 values too, and hardly ever the other way round.
  for (const DType narrow : {DType::BF16, DType::F16}) {
    if (holds_all_values(model, product.left, narrow) &&
        holds_all_values(model, product.right, narrow)) {
      return narrow;
    }
  }
  return DType::F32;
}

/// A format that stores the products finds a head that equals the embedding to be tied.
void drop_equal_head(std::vector<TensorDigest>& tensors) {
  const auto find = [&](std::string_view key) {
    return std::ranges::find_if(tensors, [&](const TensorDigest& t) { return t.key == key; });
  };
  const auto embed = find("embed"), head = find("head");
  if (embed == tensors.end() || head == tensors.end() || embed->digest != head->digest) return;
  tensors.erase(head);
}

}  // namespace

ModelDigest digest(const Model& model, int jobs) {
  check_replicas(model);
  const std::vector<std::string> keys = compared_keys(model, is_factored(model));
  ModelDigest result;
  result.tensors.resize(keys.size());
  ThreadPool pool(jobs);
  pool.parallel_for(static_cast<int64_t>(keys.size()), [&](int64_t i) {
    const std::string& key = keys[static_cast<size_t>(i)];
    const ComparedTensor tensor(model, key);
    const DType rounded_to = tensor.product() ? dtype_of_factors(model, key) : DType::F32;
    static thread_local std::vector<float> block;
    static thread_local std::vector<std::byte> scratch;
    XXH3_state_t* state = XXH3_createState();
    const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> owner(state, XXH3_freeState);
    XXH3_128bits_reset(state);
    for (int64_t row = 0; row < tensor.count(); row += tensor.step()) {
      throw_if_cancelled();
      tensor.read(row, std::min(tensor.step(), tensor.count() - row), block);
      if (rounded_to != DType::F32) round_to(block, rounded_to, scratch);
      // -0 and 0 are told apart, NaNs by their bits: the digest is of the values as stored.
      XXH3_128bits_update(state, block.data(), block.size() * sizeof(float));
    }
    result.tensors[static_cast<size_t>(i)] = {key, hex(XXH3_128bits_digest(state))};
  });
  if (is_factored(model)) drop_equal_head(result.tensors);
  std::vector<TensorDigest> sorted = result.tensors;
  std::sort(sorted.begin(), sorted.end(),
            [](const TensorDigest& a, const TensorDigest& b) { return a.key < b.key; });
  std::string lines;
  for (const TensorDigest& tensor : sorted) lines += tensor.key + " " + tensor.digest + "\n";
  result.digest = hex(XXH3_128bits(lines.data(), lines.size()));
  return result;
}

}  // namespace llmctl::reshard
