#include "runtime/kv_cache.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <set>

#include "formats/core/error.h"

using namespace llmctl;
using runtime::KvCache;

TEST_CASE("kv_cache: pages of all layers are disjoint and inside the pool") {
  KvCache cache(3, 2, 5, 4);
  cache.reset(7);
  std::set<float*> starts;
  const int64_t page_elements = 2 * 2 * 4 * 5;
  for (int64_t layer = 0; layer < 3; ++layer) {
    const kernels::PagedKv kv = cache.layer(layer);
    CHECK(kv.page_stride >= page_elements);
    for (int64_t page = 0; page < 7; ++page) {
      float* first = static_cast<float*>(kv.pool) + page * kv.page_stride;
      for (int64_t i = 0; i < page_elements; ++i) first[i] = 1.0F;  // ASan sees an overrun
      starts.insert(first);
    }
  }
  REQUIRE(starts.size() == 21);
  float* previous = nullptr;
  for (float* start : starts) {
    if (previous != nullptr) CHECK(start - previous >= page_elements);
    previous = start;
  }
}

TEST_CASE("kv_cache: a page's state is apart from its keys and values and from other pages") {
  const int64_t layers = 2, pages = 3, width = 7, kv_elements = 2 * 2 * 4 * 5;
  KvCache cache(layers, 2, 5, 4, width);
  cache.reset(pages);
  for (int64_t layer = 0; layer < layers; ++layer) {
    const kernels::PagedKv kv = cache.layer(layer);
    for (int32_t page = 0; page < pages; ++page) {
      std::fill_n(cache.state(layer, page), width, static_cast<float>(10 * layer + page));
      std::fill_n(static_cast<float*>(kv.pool) + page * kv.page_stride, kv_elements, -1.0F);
    }
  }
  for (int64_t layer = 0; layer < layers; ++layer) {
    for (int32_t page = 0; page < pages; ++page) {
      const float* state = cache.state(layer, page);
      const auto want = static_cast<float>(10 * layer + page);
      CHECK(std::all_of(state, state + width, [&](float x) { return x == want; }));
    }
  }
  CHECK_THROWS_AS(KvCache(1, 1, 8, 16, -1), Error);
  CHECK_THROWS_AS(KvCache(1, 1, 8, 16, INT64_MAX), Error);
}

TEST_CASE("kv_cache: pages of 16-bit dtypes take half and keep an aligned state") {
  const KvCache whole(2, 3, 5, 7, 4);
  for (const DType dtype : {DType::F16, DType::BF16}) {
    CAPTURE(dtype_name(dtype));
    KvCache half(2, 3, 5, 7, 4, dtype);
    CHECK(half.page_bytes() == 2 * (2 * 3 * 5 * 7 * 2 + 16));
    CHECK(whole.page_bytes() == 2 * (2 * 3 * 5 * 7 * 4 + 16));
    half.reset(2);
    CHECK(half.layer(1).dtype == dtype);
    const auto* page = static_cast<const uint16_t*>(half.layer(1).pool) + half.layer(1).page_stride;
    CHECK(reinterpret_cast<const uint16_t*>(half.state(1, 1)) == page + 2 * 3 * 5 * 7);
    CHECK(reinterpret_cast<uintptr_t>(half.state(1, 1)) % alignof(float) == 0);
    std::fill_n(half.state(1, 1), 4, 1.0F);  // ASan sees an overrun
  }
  CHECK_THROWS_AS(KvCache(1, 1, 8, 16, 0, DType::I8), Error);
}

TEST_CASE("kv_cache: pages come in ascending order and return for reuse") {
  KvCache cache(1, 1, 8, 16);
  cache.reset(4);
  CHECK(cache.pages().num_free() == 4);
  const std::vector<int32_t> first = {cache.pages().take(), cache.pages().take()};
  CHECK(first == std::vector<int32_t>{0, 1});
  CHECK(cache.pages().take() == 2);
  cache.pages().give_back(first);
  CHECK(cache.pages().num_free() == 3);
  CHECK(cache.pages().take() == 0);
  CHECK(cache.pages().take() == 1);
  CHECK(cache.pages().take() == 3);
  CHECK_THROWS_WITH_AS(cache.pages().take(), doctest::Contains("no free page"), Error);
}

TEST_CASE("kv_cache: a reset frees everything and grows when asked for more") {
  KvCache cache(2, 1, 4, 8);
  cache.reset(2);
  cache.pages().take();
  cache.reset(1);
  CHECK(cache.pages().num_free() == 2);
  cache.reset(9);
  CHECK(cache.pages().num_free() == 9);
}

TEST_CASE("kv_cache: counts the pages that tokens need") {
  const KvCache cache(1, 1, 4, 16);
  CHECK(cache.pages_for(0) == 0);
  CHECK(cache.pages_for(1) == 1);
  CHECK(cache.pages_for(16) == 1);
  CHECK(cache.pages_for(17) == 2);
}

TEST_CASE("kv_cache: a size that cannot be had is an error and not a crash") {
  KvCache cache(10'000, 1 << 20, 1 << 10, 1 << 10);
  CHECK_THROWS_WITH_AS(cache.reset(1 << 30), doctest::Contains("no memory for a KV cache"), Error);
  KvCache small(1, 1, 4, 16);
  CHECK_THROWS_WITH_AS(small.reset(int64_t{1} << 40), doctest::Contains("2^31 pages"), Error);
}
