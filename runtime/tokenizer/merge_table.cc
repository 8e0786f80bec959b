#include "runtime/tokenizer/merge_table.h"

#include <algorithm>
#include <array>
#include <bit>
#include <functional>
#include <limits>
#include <queue>

#include "formats/core/error.h"

namespace llmctl::runtime::tokenizer {

namespace {

constexpr size_t kShortRun = 48;
constexpr int32_t kNoRank = std::numeric_limits<int32_t>::max();

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

MergeTable::MergeTable(std::span<const Rule> rules) {
  table_.assign(std::bit_ceil(std::max<size_t>(16, rules.size() * 2)), Entry{kNoPair, 0, 0});
  shift_ = 64 - std::countr_zero(table_.size());
  for (const Rule& rule : rules) {
    const uint64_t pair = pair_key(rule.left, rule.right);
    size_t slot = slot_of(pair, shift_);
    while (table_[slot].pair != kNoPair && table_[slot].pair != pair) {
      slot = (slot + 1) & (table_.size() - 1);
    }
    table_[slot] = {pair, rule.rank, rule.merged};
  }
}

// Two pairs may share a bit; that only spares a cut.
void MergeTable::set_joints(std::span<const std::pair<int32_t, int32_t>> pairs) {
  joints_.assign(std::bit_ceil(std::max<size_t>(1 << 16, pairs.size() * 8)), false);
  joints_shift_ = 64 - std::countr_zero(joints_.size());
  for (const auto& [left, right] : pairs) {
    joints_[slot_of(pair_key(left, right), joints_shift_)] = true;
  }
}

bool MergeTable::may_join(int32_t left, int32_t right) const {
  return joints_[slot_of(pair_key(left, right), joints_shift_)];
}

size_t MergeTable::slot_of(uint64_t pair, int shift) {
  // Fibonacci hashing: the high bits of the product depend on all bits of the pair.
  return static_cast<size_t>((pair * 0x9E3779B97F4A7C15u) >> shift);
}

const MergeTable::Entry* MergeTable::find(int32_t left, int32_t right) const {
  const uint64_t pair = pair_key(left, right);
  for (size_t slot = slot_of(pair, shift_);; slot = (slot + 1) & (table_.size() - 1)) {
    if (table_[slot].pair == pair) return &table_[slot];
    if (table_[slot].pair == kNoPair) return nullptr;
  }
}

void MergeTable::merge(std::vector<int32_t>& symbols, std::vector<int32_t>& out) const {
  if (symbols.size() <= kShortRun || joints_.empty()) {
    merge_run(symbols, out);
    return;
  }
  std::vector<int32_t> run;
  for (size_t begin = 0; begin < symbols.size();) {
    size_t end = begin + 1;
    while (end < symbols.size() && may_join(symbols[end - 1], symbols[end])) ++end;
    run.assign(symbols.begin() + static_cast<std::ptrdiff_t>(begin),
               symbols.begin() + static_cast<std::ptrdiff_t>(end));
    merge_run(run, out);
    begin = end;
  }
}

void MergeTable::merge_tracing(std::vector<int32_t>& symbols, std::vector<Halves>& halves) const {
  merge_long(symbols, &halves);
}

void MergeTable::merge_run(std::vector<int32_t>& symbols, std::vector<int32_t>& out) const {
  if (symbols.size() <= kShortRun) {
    merge_short(symbols);
  } else {
    merge_long(symbols, nullptr);
  }
  out.insert(out.end(), symbols.begin(), symbols.end());
}

void MergeTable::merge_short(std::vector<int32_t>& symbols) const {
  size_t count = symbols.size();
  if (count < 2) return;
  // entries[i] is the merge of symbols i and i + 1.
  std::array<const Entry*, kShortRun> entries;
  for (size_t i = 0; i + 1 < count; ++i) entries[i] = find(symbols[i], symbols[i + 1]);
  while (true) {
    int32_t best_rank = kNoRank;
    size_t best = 0;
    for (size_t i = 0; i + 1 < count; ++i) {
      if (entries[i] != nullptr && entries[i]->rank < best_rank) {
        best_rank = entries[i]->rank;
        best = i;
      }
    }
    if (best_rank == kNoRank) break;
    symbols[best] = entries[best]->merged;
    --count;
    for (size_t i = best + 1; i < count; ++i) symbols[i] = symbols[i + 1];
    for (size_t i = best + 1; i + 1 < count; ++i) entries[i] = entries[i + 1];
    if (best > 0) entries[best - 1] = find(symbols[best - 1], symbols[best]);
    if (best + 1 < count) entries[best] = find(symbols[best], symbols[best + 1]);
  }
  symbols.resize(count);
}

void MergeTable::merge_long(std::vector<int32_t>& symbols, std::vector<Halves>* halves) const {
  struct Candidate {
    int32_t rank;
    uint32_t position;  ///< of the left symbol
    int32_t merged;
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };
  constexpr uint32_t kEnd = std::numeric_limits<uint32_t>::max();
  if (symbols.size() >= kEnd) throw Error(ErrorCode::kUsage, "text longer than 2^32 characters");
  const uint32_t count = static_cast<uint32_t>(symbols.size());
  std::vector<uint32_t> previous(count), next(count);
  for (uint32_t i = 0; i < count; ++i) {
    previous[i] = i == 0 ? kEnd : i - 1;
    next[i] = i + 1 == count ? kEnd : i + 1;
  }
  constexpr int32_t kGone = -1;
  std::vector<Candidate> storage;
  storage.reserve(count);
  std::priority_queue heap(std::greater<Candidate>{}, std::move(storage));
  const auto offer = [&](uint32_t left) {
    const Entry* entry = find(symbols[left], symbols[next[left]]);
    if (entry == nullptr) return;
    heap.push({entry->rank, left, entry->merged});
    if (halves != nullptr) {
      (*halves)[static_cast<size_t>(entry->merged)] = {symbols[left], symbols[next[left]]};
    }
  };
  for (uint32_t i = 0; i + 1 < count; ++i) offer(i);
  while (!heap.empty()) {
    const Candidate top = heap.top();
    heap.pop();
    const uint32_t left = top.position;
    if (symbols[left] == kGone || next[left] == kEnd) continue;
    const uint32_t right = next[left];
    const Entry* entry = find(symbols[left], symbols[right]);
    if (entry == nullptr || entry->merged != top.merged) continue;  // one side has changed since
    symbols[left] = entry->merged;
    symbols[right] = kGone;
    next[left] = next[right];
    if (next[right] != kEnd) previous[next[right]] = left;
    if (previous[left] != kEnd) offer(previous[left]);
    if (next[left] != kEnd) offer(left);
  }
  std::erase(symbols, kGone);
}

}  // namespace llmctl::runtime::tokenizer
