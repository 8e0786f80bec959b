#include "kernels/copy_box.h"

#include <numeric>

#include "kernels/cpu/dispatch.h"
#include "tests/kernels/kernel_test.h"

namespace llmctl {
namespace {

using kernels::Box;
using kernels::CastStats;
using kernels::Isa;
using kernels::Overflow;
using test::same_bytes;

struct Pair {
  DType src, dst;
};
constexpr Pair kPairs[] = {
    {DType::U8, DType::U8},    {DType::F16, DType::F16},     {DType::F32, DType::F32},
    {DType::F64, DType::F64},  {DType::F32, DType::F16},     {DType::F32, DType::BF16},
    {DType::BF16, DType::F16}, {DType::F16, DType::F32},     {DType::BF16, DType::F32},
    {DType::F64, DType::F16},  {DType::F8_E4M3, DType::F16}, {DType::F8_E5M2, DType::F32},
};

/// Strides of a dense array whose axes lie in memory in `order` (slowest first), with `gap`
/// elements after each run of the fastest axis.
void lay_out(const Box& box, const std::vector<int>& order, int64_t gap, int64_t* strides) {
  int64_t stride = 1;
  for (size_t i = order.size(); i-- > 0;) {
    strides[order[i]] = stride;
    stride = stride * box.extents[order[i]] + (i + 1 == order.size() ? gap : 0);
  }
}

int64_t span_elements(const Box& box, const int64_t* strides) {
  int64_t last = 0;
  for (int i = 0; i < box.num_axes; ++i) last += (box.extents[i] - 1) * strides[i];
  return last + 1;
}

std::vector<unsigned char> noise(size_t bytes, uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::vector<unsigned char> data(bytes);
  for (unsigned char& byte : data) byte = static_cast<unsigned char>(rng());
  return data;
}

/// Copies on every ISA into a canvas that is larger than the box, and compares all of it.
void check_box(const Box& box, Pair pair, Overflow overflow, int64_t misalign, uint64_t seed) {
  const size_t src_bytes =
      static_cast<size_t>(span_elements(box, box.src_strides)) * dtype_bytes(pair.src);
  const size_t dst_bytes =
      static_cast<size_t>(span_elements(box, box.dst_strides)) * dtype_bytes(pair.dst);
  const auto shift = static_cast<size_t>(misalign);
  const std::vector<unsigned char> src = noise(src_bytes + shift, seed);
  std::vector<unsigned char> want(dst_bytes + shift + 64, 0xCD);
  const CastStats expected = kernels::copy_box_reference(
      want.data() + shift, pair.dst, src.data() + shift, pair.src, box, overflow);
  for (const Isa isa : kernels::available_isas()) {
    CAPTURE(kernels::isa_name(isa));
    std::vector<unsigned char> got(want.size(), 0xCD);
    const CastStats stats = kernels::cpu::copy_box(isa, got.data() + shift, pair.dst,
                                                   src.data() + shift, pair.src, box, overflow);
    REQUIRE(same_bytes(got, want));
    REQUIRE(stats.overflowed == expected.overflowed);
  }
}

}  // namespace

TEST_CASE("copy_box: places the elements of a small transpose by hand") {
  // src (2, 3) row-major, dst its transpose (3, 2).
  const uint16_t src[6] = {1, 2, 3, 4, 5, 6};
  uint16_t dst[6] = {};
  Box box{2, {2, 3}, {3, 1}, {1, 2}};
  kernels::copy_box(dst, DType::U16, src, DType::U16, box, Overflow::kInf);
  const std::vector<uint16_t> want{1, 4, 2, 5, 3, 6};
  CHECK(std::vector<uint16_t>(dst, dst + 6) == want);
  kernels::copy_box_reference(dst, DType::U16, src, DType::U16, box, Overflow::kInf);
  CHECK(std::vector<uint16_t>(dst, dst + 6) == want);
}

TEST_CASE("copy_box: random boxes of up to five axes equal the reference on every ISA") {
  std::mt19937_64 rng(20240501);
  const int64_t sizes[] = {1, 1, 2, 3, 4, 5, 7, 8, 16, 17, 31, 33, 64, 71};
  for (int round = 0; round < 1500; ++round) {
    CAPTURE(round);
    Box box;
    box.num_axes = static_cast<int>(rng() % 6);
    int64_t total = 1;
    std::vector<int> order(static_cast<size_t>(box.num_axes));
    std::iota(order.begin(), order.end(), 0);
    for (int i = 0; i < box.num_axes; ++i) {
      box.extents[i] = sizes[rng() % std::size(sizes)];
      if (total * box.extents[i] > 40000) box.extents[i] = 1;
      total *= box.extents[i];
    }
    std::shuffle(order.begin(), order.end(), rng);
    lay_out(box, order, static_cast<int64_t>(rng() % 3), box.src_strides);
    std::shuffle(order.begin(), order.end(), rng);
    lay_out(box, order, static_cast<int64_t>(rng() % 3), box.dst_strides);
    const Overflow overflow = rng() % 2 == 0 ? Overflow::kInf : Overflow::kClamp;
    check_box(box, kPairs[rng() % std::size(kPairs)], overflow, static_cast<int64_t>(rng() % 4),
              rng());
  }
}

TEST_CASE("copy_box: transposes of every width equal the reference at tile edges") {
  for (const Pair pair : kPairs) {
    for (const int64_t rows : {4, 15, 16, 32, 33, 64, 95, 130}) {
      for (const int64_t cols : {4, 8, 31, 32, 64, 65, 129}) {
        CAPTURE(dtype_name(pair.src));
        CAPTURE(dtype_name(pair.dst));
        CAPTURE(rows);
        CAPTURE(cols);
        const Box box{2, {rows, cols}, {cols, 1}, {1, rows}};
        check_box(box, pair, Overflow::kInf, (rows + cols) % 3, static_cast<uint64_t>(rows));
      }
    }
  }
}

TEST_CASE("copy_box: a transpose larger than the caches equals the reference") {
  // Row pitch of dst a multiple of 64 bytes and the total beyond the streaming threshold.
  const Box box{2, {2048, 1100}, {1100, 1}, {1, 2048}};
  check_box(box, {DType::F16, DType::F16}, Overflow::kInf, 0, 1);
  check_box(box, {DType::F32, DType::BF16}, Overflow::kInf, 0, 2);
  check_box(box, {DType::F32, DType::F32}, Overflow::kInf, 2, 3);
}

TEST_CASE("copy_box: an extent of zero copies nothing and no axis copies one element") {
  uint32_t src = 7;
  uint32_t dst = 9;
  Box box{2, {3, 0}, {1, 1}, {1, 1}};
  kernels::copy_box(&dst, DType::U32, &src, DType::U32, box, Overflow::kInf);
  CHECK(dst == 9);
  box = Box{};
  kernels::copy_box(&dst, DType::U32, &src, DType::U32, box, Overflow::kInf);
  CHECK(dst == 7);
}

TEST_CASE("copy_box: a source stride of zero repeats elements") {
  const Box box{2, {5, 33}, {0, 1}, {33, 1}};
  check_box(box, {DType::F32, DType::F16}, Overflow::kInf, 0, 4);
  const Box inner{2, {33, 5}, {1, 0}, {5, 1}};
  check_box(inner, {DType::F32, DType::F32}, Overflow::kInf, 0, 5);
}

TEST_CASE("copy_box: a copy without cast keeps signalling NaN payloads") {
  const uint16_t src[4] = {0x7C01, 0xFDFF, 0x7E00, 0x0001};
  uint16_t dst[4] = {};
  const Box box{1, {4}, {1}, {1}};
  kernels::copy_box(dst, DType::F16, src, DType::F16, box, Overflow::kClamp);
  CHECK(std::memcmp(dst, src, sizeof src) == 0);
}

}  // namespace llmctl
