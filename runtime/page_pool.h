// Which pages of the KV cache are free, who shares the others, and which prompt prefixes they hold.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace llmctl::runtime {

/// Counts the owners of numbered pages and finds full pages again by the tokens in them. A page
/// that nobody owns any more is kept as long as no other is free, in case its prefix comes again;
/// then the one that was given back longest ago goes. Every call gives the same on all ranks when
/// they make the same calls. Only `reset` allocates. Not thread-safe.
class PagePool {
 public:
  /// Requires: page_size >= 1.
  explicit PagePool(int64_t page_size);

  /// Forgets everything; afterwards `num_pages` pages are free.
  void reset(int64_t num_pages);

  /// Whether work that uses the pages was begun and not ended: then an error has left owners that
  /// are gone and pages that were never computed, and only `reset` helps.
  bool is_in_use() const { return in_use_; }
  void begin_use() { in_use_ = true; }
  void end_use() { in_use_ = false; }

  int64_t page_size() const { return page_size_; }
  int64_t num_pages() const { return static_cast<int64_t>(pages_.size()); }
  /// Those that `take` can give.
  int64_t num_free() const { return static_cast<int64_t>(free_.size()) + num_kept_; }

  /// The lowest-numbered page of those given back last, now with one owner. Throws kInternal when
  /// none is free.
  int32_t take();
  /// One more owner.
  void share(int32_t page);
  /// One owner less for each.
  void give_back(std::span<const int32_t> pages);
  /// Whether it has more than one owner, so that it must not be written to.
  bool is_shared(int32_t page) const { return pages_[static_cast<size_t>(page)].owners > 1; }

  /// The place of a prefix in the tree of all prefixes: that of no tokens.
  static constexpr uint64_t kRoot = 0;

  struct Prefix {
    int32_t page = -1;  ///< -1: not known
    uint64_t node = 0;  ///< to continue from
    int64_t pass = 0;   ///< the one it was remembered in
  };

  /// The page that holds `tokens` (page_size of them) behind the prefix `before`, computed under
  /// `key` as remember was told. Tokens are compared, not only their hash.
  Prefix find(uint64_t before, std::span<const int32_t> tokens, int64_t key) const;

  /// Makes a full page findable and returns its node; when the same prefix is known already, that
  /// one's. `key` stands for what else its contents depend on, `pass` for the forward pass that
  /// completes them.
  uint64_t remember(int32_t page, uint64_t before, std::span<const int32_t> tokens, int64_t key,
                    int64_t pass);

 private:
  struct Page {
    int32_t owners = 0;
    // While findable: node != kRoot.
    uint64_t before = kRoot, node = kRoot, hash = 0;
    int64_t key = 0, pass = 0;
    int32_t next_in_bucket = -1;
    // While kept without an owner: neighbours in the order of giving back.
    int32_t older = -1, newer = -1;
  };

  Page& at(int32_t page) { return pages_[static_cast<size_t>(page)]; }
  int32_t& bucket(uint64_t hash) { return buckets_[hash & (buckets_.size() - 1)]; }
  void unlink_kept(int32_t page);
  void forget(int32_t page);

  int64_t page_size_;
  bool in_use_ = false;
  std::vector<Page> pages_;
  std::vector<int32_t> tokens_;   // (num_pages, page_size), of the findable ones
  std::vector<int32_t> buckets_;  // heads of chains; as many as a power of two
  std::vector<int32_t> free_;     // a stack
  int32_t oldest_ = -1, newest_ = -1;
  int64_t num_kept_ = 0;
  uint64_t next_node_ = 1;
};

}  // namespace llmctl::runtime
