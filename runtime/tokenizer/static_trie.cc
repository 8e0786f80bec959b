#include "runtime/tokenizer/static_trie.h"

#include <algorithm>

namespace llmctl::runtime::tokenizer {

namespace {

constexpr uint32_t kBlock = 256;

/// The free places of a growing table, as a ring through them.
class FreePlaces {
 public:
  bool is_free(uint32_t place) const { return next_[place] != kTaken; }
  /// The lowest free place behind `place`, which is free or the head.
  uint32_t after(uint32_t place) const { return place == kHead ? first_ : next_[place]; }
  uint32_t size() const { return static_cast<uint32_t>(next_.size()); }

  void grow() {
    const uint32_t begin = size();
    next_.resize(begin + kBlock);
    previous_.resize(begin + kBlock);
    for (uint32_t i = begin; i < begin + kBlock; ++i) {
      previous_[i] = i == begin ? last_ : i - 1;
      next_[i] = i + 1 == begin + kBlock ? kHead : i + 1;
    }
    (last_ == kHead ? first_ : next_[last_]) = begin;
    last_ = begin + kBlock - 1;
  }
  void take(uint32_t place) {
    const uint32_t before = previous_[place], behind = next_[place];
    (before == kHead ? first_ : next_[before]) = behind;
    (behind == kHead ? last_ : previous_[behind]) = before;
    next_[place] = kTaken;
  }

  static constexpr uint32_t kHead = ~uint32_t{0};

 private:
  static constexpr uint32_t kTaken = kHead - 1;
  std::vector<uint32_t> next_, previous_;
  uint32_t first_ = kHead, last_ = kHead;
};

/// A base that puts all of `bytes` on free places. After some tries a block is opened, and the
/// places tried are given up: else each node with several children would try them again.
uint32_t find_base(const std::vector<uint8_t>& bytes, FreePlaces& places) {
  constexpr int kTries = 64;
  uint32_t place = places.after(FreePlaces::kHead);
  for (int i = 0; i < kTries && place != FreePlaces::kHead; ++i, place = places.after(place)) {
    const uint32_t base = place ^ bytes.front();
    if (std::all_of(bytes.begin(), bytes.end(),
                    [&](uint8_t byte) { return places.is_free(base ^ byte); })) {
      return base;
    }
  }
  for (uint32_t tried = places.after(FreePlaces::kHead); tried != place;) {
    const uint32_t next = places.after(tried);
    places.take(tried);
    tried = next;
  }
  const uint32_t base = places.size();
  places.grow();
  return base;
}

}  // namespace

StaticTrie::StaticTrie(std::vector<std::pair<std::string_view, int32_t>> entries) {
  if (entries.empty()) return;
  std::stable_sort(entries.begin(), entries.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  FreePlaces places;
  places.grow();
  places.take(kRoot);
  units_.resize(places.size());
  struct Work {
    size_t begin, end;  ///< of the entries that share the node's bytes
    size_t depth;
    Node node;
  };
  // Breadth first: the top levels, which every text walks, lie close together.
  std::vector<Work> level = {{0, entries.size(), 0, kRoot}}, below;
  std::vector<uint8_t> bytes;
  std::vector<size_t> bounds;
  for (; !level.empty(); level.swap(below), below.clear()) {
    for (const Work& work : level) {
      size_t begin = work.begin;
      while (begin < work.end && entries[begin].first.size() == work.depth) ++begin;
      // The keys that end here come first, the one that was given first in front.
      if (begin > work.begin && work.depth > 0)
        units_[work.node].value = entries[work.begin].second;
      if (begin == work.end) continue;
      bytes.clear();
      bounds.clear();
      for (size_t i = begin; i < work.end; ++i) {
        const auto byte = static_cast<uint8_t>(entries[i].first[work.depth]);
        if (!bytes.empty() && bytes.back() == byte) continue;
        bytes.push_back(byte);
        bounds.push_back(i);
      }
      bounds.push_back(work.end);
      const uint32_t base = find_base(bytes, places);
      units_.resize(places.size());
      units_[work.node].base = base;
      for (size_t i = 0; i < bytes.size(); ++i) {
        const Node child = base ^ bytes[i];
        places.take(child);
        units_[child].parent = work.node;
        below.push_back({bounds[i], bounds[i + 1], work.depth + 1, child});
      }
    }
  }
}

std::pair<size_t, int32_t> StaticTrie::longest_prefix(std::string_view text) const {
  std::pair<size_t, int32_t> longest = {0, -1};
  Node node = kRoot;
  for (size_t i = 0; i < text.size(); ++i) {
    node = step(node, text[i]);
    if (node == kNone) break;
    if (value(node) >= 0) longest = {i + 1, value(node)};
  }
  return longest;
}

}  // namespace llmctl::runtime::tokenizer
