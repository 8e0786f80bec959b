#include "runtime/page_pool.h"

#include <algorithm>
#include <bit>

#include "formats/core/error.h"

namespace llmctl::runtime {
namespace {

uint64_t hash_prefix(uint64_t before, std::span<const int32_t> tokens, int64_t key) {
  // FNV-1a over whole words with a final mix; equal hashes are told apart by comparing.
  uint64_t hash = 0xcbf29ce484222325 ^ before;
  const auto add = [&](uint64_t word) { hash = (hash ^ word) * 0x100000001b3; };
  add(static_cast<uint64_t>(key));
  for (const int32_t token : tokens) add(static_cast<uint32_t>(token));
  hash ^= hash >> 32;
  return hash * 0x9e3779b97f4a7c15 >> 7;
}

}  // namespace

PagePool::PagePool(int64_t page_size) : page_size_(page_size) {}

void PagePool::reset(int64_t num_pages) {
  const auto n = static_cast<size_t>(num_pages);
  pages_.assign(n, {});
  tokens_.assign(n * static_cast<size_t>(page_size_), 0);
  buckets_.assign(std::bit_ceil(std::max<size_t>(n, 1)), -1);
  free_.clear();
  free_.reserve(n);
  for (int64_t page = num_pages; page-- > 0;) free_.push_back(static_cast<int32_t>(page));
  oldest_ = newest_ = -1;
  num_kept_ = 0;
  in_use_ = false;
}

int32_t PagePool::take() {
  int32_t page = -1;
  if (!free_.empty()) {
    page = free_.back();
    free_.pop_back();
  } else if (oldest_ >= 0) {
    page = oldest_;
    unlink_kept(page);
    forget(page);
  } else {
    throw Error(ErrorCode::kInternal, "the KV cache has no free page");
  }
  at(page).owners = 1;
  return page;
}

void PagePool::share(int32_t page) {
  if (at(page).owners++ == 0) unlink_kept(page);
}

void PagePool::give_back(std::span<const int32_t> pages) {
  // From the end: of a prefix that has to go, the far end goes first.
  for (size_t i = pages.size(); i-- > 0;) {
    Page& page = at(pages[i]);
    if (--page.owners > 0) continue;
    if (page.node == kRoot) {
      free_.push_back(pages[i]);
      continue;
    }
    page.older = newest_;
    page.newer = -1;
    (newest_ >= 0 ? at(newest_).newer : oldest_) = pages[i];
    newest_ = pages[i];
    ++num_kept_;
  }
}

void PagePool::unlink_kept(int32_t number) {
  const Page& page = at(number);
  (page.older >= 0 ? at(page.older).newer : oldest_) = page.newer;
  (page.newer >= 0 ? at(page.newer).older : newest_) = page.older;
  --num_kept_;
}

void PagePool::forget(int32_t number) {
  Page& page = at(number);
  int32_t* link = &bucket(page.hash);
  while (*link != number) link = &at(*link).next_in_bucket;
  *link = page.next_in_bucket;
  page = {};
}

PagePool::Prefix PagePool::find(uint64_t before, std::span<const int32_t> tokens,
                                int64_t key) const {
  if (pages_.empty()) return {};
  const uint64_t hash = hash_prefix(before, tokens, key);
  int32_t number = buckets_[hash & (buckets_.size() - 1)];
  for (; number >= 0; number = pages_[static_cast<size_t>(number)].next_in_bucket) {
    const Page& page = pages_[static_cast<size_t>(number)];
    if (page.hash == hash && page.before == before && page.key == key &&
        std::equal(tokens.begin(), tokens.end(), tokens_.begin() + number * page_size_)) {
      return {number, page.node, page.pass};
    }
  }
  return {};
}

uint64_t PagePool::remember(int32_t number, uint64_t before, std::span<const int32_t> tokens,
                            int64_t key, int64_t pass) {
  if (const Prefix known = find(before, tokens, key); known.page >= 0) return known.node;
  Page& page = at(number);
  if (page.node != kRoot) throw Error(ErrorCode::kInternal, "a page is remembered twice");
  page.before = before;
  page.node = next_node_++;
  page.hash = hash_prefix(before, tokens, key);
  page.key = key;
  page.pass = pass;
  std::copy(tokens.begin(), tokens.end(), tokens_.begin() + number * page_size_);
  int32_t& head = bucket(page.hash);
  page.next_in_bucket = head;
  head = number;
  return page.node;
}

}  // namespace llmctl::runtime
