#include "formats/core/checked.h"

#include <doctest/doctest.h>

#include "formats/checkpoint.h"

namespace llmctl {
namespace {

constexpr uint64_t kMax = UINT64_MAX;

TEST_CASE("checked: sums and products say when they overflow") {
  CHECK(checked_add(kMax - 1, 1) == kMax);
  CHECK(!checked_add(kMax, 1));
  CHECK(checked_mul(uint64_t{1} << 32, (uint64_t{1} << 32) - 1) ==
        kMax - ((uint64_t{1} << 32) - 1));
  CHECK(!checked_mul(uint64_t{1} << 32, uint64_t{1} << 32));
  CHECK(checked_mul(kMax, 0) == 0);
}

TEST_CASE("checked: shapes count elements and bytes") {
  CHECK(checked_num_elements({}) == 1);
  CHECK(checked_num_elements({3, 0, 5}) == 0);
  CHECK(checked_num_elements({2, 3, 5}) == 30);
  CHECK(!checked_num_elements({2, -1}));
  CHECK(!checked_num_elements({INT64_MAX, 2}));
  CHECK(checked_num_elements({INT64_MAX}) == INT64_MAX);
  CHECK(checked_num_bytes(DType::F16, {2, 3}) == 12);
  CHECK(checked_num_bytes(DType::BOOL, {INT64_MAX}) == INT64_MAX);
  CHECK(checked_num_bytes(DType::F16, {INT64_MAX}) == kMax - 1);
  CHECK(!checked_num_bytes(DType::F32, {INT64_MAX}));
}

TEST_CASE("checked: ranges are inside without wrapping") {
  CHECK(is_inside(0, 0, 0));
  CHECK(is_inside(8, 0, 8));
  CHECK(is_inside(4, 4, 8));
  CHECK(!is_inside(4, 5, 8));
  CHECK(!is_inside(9, 0, 8));
  CHECK(!is_inside(kMax, 2, 8));
  CHECK(!is_inside(1, kMax, 8));
}

TEST_CASE("dtypes: the table is in enumerator order and names find their row") {
  int index = 0;
  for (const DTypeInfo& info : dtype_table()) {
    CAPTURE(info.name);
    CHECK(static_cast<int>(info.dtype) == index++);
    CHECK(&dtype_info(info.dtype) == &info);
    CHECK(find_dtype(info.name) == info.dtype);
    CHECK(find_dtype(info.torch) == info.dtype);
    CHECK(dtype_bytes(info.dtype) * 8 == static_cast<size_t>(info.bits));
    if (!info.flag.empty()) CHECK(find_dtype(info.flag) == info.dtype);
  }
  CHECK(index == static_cast<int>(DType::BOOL) + 1);
  CHECK(!find_dtype(""));
  CHECK(!find_dtype("f32"));
}

TEST_CASE("stored tensor: contiguity ignores axes of one and tensors of none") {
  const auto tensor = [](Shape shape, std::vector<int64_t> strides) {
    formats::StoredTensor t;
    t.shape = std::move(shape);
    t.strides = std::move(strides);
    return t.is_contiguous();
  };
  CHECK(tensor({2, 3}, {}));
  CHECK(tensor({2, 3}, {3, 1}));
  CHECK(!tensor({2, 3}, {1, 2}));
  CHECK(tensor({1, 3}, {7, 1}));
  CHECK(tensor({3, 1}, {1, 9}));
  CHECK(!tensor({3}, {0}));
  CHECK(tensor({}, {}));
  // The product of the last two axes does not fit, and does not matter.
  CHECK(tensor({0, INT64_MAX, 4}, {5, 5, 5}));
}

}  // namespace
}  // namespace llmctl
