// The merges of a BPE model: which neighbours become one symbol, and which of them first.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace llmctl::runtime::tokenizer {

/// The pair of lowest rank, the leftmost on ties, is merged until no pair is in the table. Symbols
/// are numbers that are not negative. Short runs are searched linearly, long ones through a heap,
/// so that a text without cuts costs n log n. Immutable once built; safe to share.
class MergeTable {
 public:
  struct Rule {
    int32_t left, right;
    int32_t rank;
    int32_t merged;
  };
  /// The two symbols that a merged symbol was last offered for.
  using Halves = std::pair<int32_t, int32_t>;

  /// Of two rules for one pair the later counts.
  explicit MergeTable(std::span<const Rule> rules = {});

  /// Tells which start symbols rules may join: for each rule the start symbol that its left side
  /// ends with and the one that its right side begins with. Runs are then first cut between start
  /// symbols that nothing joins. Costs time here, and spares the heap for texts that no
  /// pre-tokenizer cuts.
  void set_joints(std::span<const std::pair<int32_t, int32_t>> pairs);

  /// Merges the start symbols `symbols` and appends what is left to `out`; `symbols` is scratch.
  void merge(std::vector<int32_t>& symbols, std::vector<int32_t>& out) const;

  /// Merges in place, all symbols in one order. `halves[m]` is set each time that two neighbours
  /// are found to make m. Requires: `halves` has an entry for every merged symbol.
  void merge_tracing(std::vector<int32_t>& symbols, std::vector<Halves>& halves) const;

 private:
  struct Entry {
    uint64_t pair;  ///< left symbol in the high half; kNoPair marks an empty slot
    int32_t rank;
    int32_t merged;
  };
  static constexpr uint64_t kNoPair = ~uint64_t{0};

  static size_t slot_of(uint64_t pair, int shift);
  /// Null when the pair does not merge.
  const Entry* find(int32_t left, int32_t right) const;
  bool may_join(int32_t left, int32_t right) const;
  void merge_run(std::vector<int32_t>& symbols, std::vector<int32_t>& out) const;
  void merge_short(std::vector<int32_t>& symbols) const;
  void merge_long(std::vector<int32_t>& symbols, std::vector<Halves>* halves) const;

  std::vector<Entry> table_;  ///< open addressing; a power of two, at most half full
  int shift_ = 0;
  std::vector<bool> joints_;  ///< by hash of two start symbols; a power of two, or empty
  int joints_shift_ = 0;
};

}  // namespace llmctl::runtime::tokenizer
