#include "runtime/page_pool.h"

#include <doctest/doctest.h>

#include <vector>

#include "formats/core/error.h"

using namespace llmctl;
using runtime::PagePool;

namespace {
const std::vector<int32_t> kA = {1, 2}, kB = {3, 4}, kC = {5, 6};

void give_back(PagePool& pool, std::vector<int32_t> pages) { pool.give_back(pages); }
}  // namespace

TEST_CASE("page_pool: a page is free again when its last owner gives it back") {
  PagePool pool(2);
  pool.reset(2);
  const int32_t page = pool.take();
  CHECK_FALSE(pool.is_shared(page));
  pool.share(page);
  CHECK(pool.is_shared(page));
  give_back(pool, {page});
  CHECK_FALSE(pool.is_shared(page));
  CHECK(pool.num_free() == 1);
  give_back(pool, {page});
  CHECK(pool.num_free() == 2);
  CHECK(pool.take() == page);
  pool.take();
  CHECK_THROWS_AS(pool.take(), Error);
}

TEST_CASE("page_pool: a prefix is found by all its tokens and its key") {
  PagePool pool(2);
  pool.reset(4);
  const int32_t a = pool.take(), b = pool.take();
  const uint64_t node_a = pool.remember(a, PagePool::kRoot, kA, 0, 1);
  const uint64_t node_b = pool.remember(b, node_a, kB, 0, 2);
  CHECK(pool.find(PagePool::kRoot, kA, 0).page == a);
  CHECK(pool.find(PagePool::kRoot, kA, 0).node == node_a);
  CHECK(pool.find(node_a, kB, 0).page == b);
  CHECK(pool.find(node_a, kB, 0).pass == 2);
  CHECK(pool.find(PagePool::kRoot, kB, 0).page == -1);
  CHECK(pool.find(node_a, kC, 0).page == -1);
  CHECK(pool.find(node_a, kB, 1).page == -1);
  // The same tokens once more: the first page stays the one that is found.
  const int32_t again = pool.take();
  CHECK(pool.remember(again, node_a, kB, 0, 3) == node_b);
  CHECK(pool.find(node_a, kB, 0).page == b);
  give_back(pool, {again});
  CHECK(pool.num_free() == 2);
}

TEST_CASE(
    "page_pool: pages without owner are found until room is needed and the far end goes first") {
  PagePool pool(2);
  pool.reset(3);
  const int32_t a = pool.take(), b = pool.take();
  const uint64_t node_a = pool.remember(a, PagePool::kRoot, kA, 0, 1);
  pool.remember(b, node_a, kB, 0, 1);
  give_back(pool, {a, b});
  CHECK(pool.num_free() == 3);
  const int32_t c = pool.take();  // the one that was never used
  CHECK(pool.find(node_a, kB, 0).page == b);
  // A page that is taken up again does not go.
  pool.share(a);
  CHECK(pool.take() == b);
  CHECK(pool.find(node_a, kB, 0).page == -1);
  CHECK(pool.find(PagePool::kRoot, kA, 0).page == a);
  CHECK_THROWS_AS(pool.take(), Error);
  give_back(pool, {a, c});
  CHECK(pool.take() == c);
  CHECK(pool.take() == a);
  CHECK(pool.find(PagePool::kRoot, kA, 0).page == -1);
}

TEST_CASE("page_pool: many prefixes come and go without mixing them up") {
  PagePool pool(2);
  pool.reset(8);
  for (int32_t round = 0; round < 500; ++round) {
    const std::vector<int32_t> tokens = {round % 23, round % 7};
    const auto found = pool.find(PagePool::kRoot, tokens, 0);
    int32_t page = found.page;
    if (page >= 0) {
      pool.share(page);
    } else {
      page = pool.take();
      const uint64_t node = pool.remember(page, PagePool::kRoot, tokens, 0, round);
      CHECK(pool.find(PagePool::kRoot, tokens, 0).node == node);
    }
    CHECK(pool.find(PagePool::kRoot, tokens, 0).page == page);
    give_back(pool, {page});
    CHECK(pool.num_free() == 8);
  }
}
