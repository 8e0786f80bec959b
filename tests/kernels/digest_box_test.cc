#include "kernels/digest_box.h"

#include <algorithm>
#include <numeric>

#include "kernels/cpu/dispatch.h"
#include "tests/kernels/kernel_test.h"

namespace llmctl {
namespace {

using kernels::DigestBox;

/// A dense tensor, its axes in memory in `order` (slowest first), and the weights of its indices.
struct Tensor {
  std::vector<int64_t> extents, strides;
  std::vector<std::vector<uint32_t>> weights;
  std::vector<unsigned char> bytes;
  int64_t width = 2;

  DigestBox part(const std::vector<int64_t>& lo, const std::vector<int64_t>& n) const {
    DigestBox box;
    box.num_axes = static_cast<int>(extents.size());
    for (size_t a = 0; a < extents.size(); ++a) {
      box.extents[a] = n[a];
      box.strides[a] = strides[a];
      box.weights[a] = weights[a].data() + lo[a];
    }
    return box;
  }
  const unsigned char* at(const std::vector<int64_t>& index) const {
    int64_t offset = 0;
    for (size_t a = 0; a < index.size(); ++a) offset += index[a] * strides[a];
    return bytes.data() + offset * width;
  }
};

Tensor random_tensor(std::mt19937_64& rng, int64_t width) {
  Tensor tensor;
  tensor.width = width;
  const size_t num_axes = rng() % 5;
  std::vector<size_t> order(num_axes);
  std::iota(order.begin(), order.end(), size_t{0});
  std::shuffle(order.begin(), order.end(), rng);
  for (size_t a = 0; a < num_axes; ++a) {
    tensor.extents.push_back(static_cast<int64_t>(1 + rng() % (rng() % 3 == 0 ? 90 : 7)));
    std::vector<uint32_t> weights;
    for (int64_t i = 0; i < tensor.extents[a]; ++i) {
      weights.push_back(kernels::digest_weight(a * 77 + 5, i));
    }
    tensor.weights.push_back(std::move(weights));
  }
  tensor.strides.resize(num_axes);
  int64_t stride = rng() % 4 == 0 ? 2 : 1;
  for (size_t i = num_axes; i-- > 0;) {
    tensor.strides[order[i]] = stride;
    stride *= tensor.extents[order[i]];
  }
  tensor.bytes.resize(static_cast<size_t>(std::max<int64_t>(2, stride) * width));
  for (unsigned char& byte : tensor.bytes) byte = static_cast<unsigned char>(rng());
  return tensor;
}

}  // namespace

TEST_CASE("digest_box: every ISA agrees with the reference and with the parts of the box") {
  std::mt19937_64 rng(20);
  for (int round = 0; round < 400; ++round) {
    const int64_t width = int64_t{1} << (round % 4);
    const Tensor tensor = random_tensor(rng, width);
    const std::vector<int64_t> zero(tensor.extents.size(), 0);
    const DigestBox whole = tensor.part(zero, tensor.extents);
    const uint64_t want = kernels::digest_box_reference(tensor.bytes.data(), width, whole);
    CAPTURE(round);
    for (const kernels::Isa isa : kernels::available_isas()) {
      CAPTURE(kernels::isa_name(isa));
      REQUIRE(kernels::cpu::digest_box(isa, tensor.bytes.data(), width, whole) == want);
      if (tensor.extents.empty()) continue;
      const size_t axis = rng() % tensor.extents.size();
      const int64_t at = static_cast<int64_t>(rng() % static_cast<uint64_t>(tensor.extents[axis]));
      std::vector<int64_t> first = tensor.extents, second = tensor.extents, lo = zero;
      first[axis] = lo[axis] = at;
      second[axis] -= at;
      const uint64_t sum =
          kernels::cpu::digest_box(isa, tensor.bytes.data(), width, tensor.part(zero, first)) +
          kernels::cpu::digest_box(isa, tensor.at(lo), width, tensor.part(lo, second));
      REQUIRE(sum == want);
    }
  }
}

TEST_CASE("digest_box: a transposed copy has the same digest and any changed bit another") {
  std::mt19937_64 rng(21);
  for (const int64_t width : {1, 2, 4, 8}) {
    Tensor tensor = random_tensor(rng, width);
    tensor.extents = {6, 35};
    tensor.strides = {35, 1};
    tensor.weights.assign(2, {});
    for (size_t a = 0; a < 2; ++a) {
      for (int64_t i = 0; i < tensor.extents[a]; ++i) {
        tensor.weights[a].push_back(kernels::digest_weight(a, i));
      }
    }
    tensor.bytes.assign(static_cast<size_t>(6 * 35 * width), 0);
    for (unsigned char& byte : tensor.bytes) byte = static_cast<unsigned char>(rng());
    Tensor turned = tensor;
    turned.strides = {1, 6};
    for (int64_t i = 0; i < 6; ++i) {
      for (int64_t j = 0; j < 35; ++j) {
        std::copy_n(tensor.at({i, j}), width, turned.bytes.begin() + (j * 6 + i) * width);
      }
    }
    const DigestBox box = tensor.part({0, 0}, {6, 35});
    const uint64_t want = kernels::digest_box(tensor.bytes.data(), width, box);
    CHECK(kernels::digest_box(turned.bytes.data(), width, turned.part({0, 0}, {6, 35})) == want);
    for (size_t bit = 0; bit < tensor.bytes.size() * 8; ++bit) {
      tensor.bytes[bit / 8] ^= static_cast<unsigned char>(1U << bit % 8);
      REQUIRE(kernels::digest_box(tensor.bytes.data(), width, box) != want);
      tensor.bytes[bit / 8] ^= static_cast<unsigned char>(1U << bit % 8);
    }
  }
}

TEST_CASE("digest_box: missing zeros are missed and an empty box counts nothing") {
  const std::vector<unsigned char> zeros(64, 0);
  const std::vector<uint32_t> weights = {3, 5, 7, 9};
  DigestBox box;
  box.num_axes = 1;
  box.extents[0] = 4;
  box.strides[0] = 1;
  box.weights[0] = weights.data();
  CHECK(kernels::digest_box(zeros.data(), 2, box) == 24);
  box.extents[0] = 3;
  CHECK(kernels::digest_box(zeros.data(), 2, box) == 15);
  box.extents[0] = 0;
  CHECK(kernels::digest_box(zeros.data(), 2, box) == 0);
}

}  // namespace llmctl
