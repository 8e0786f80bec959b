// Duplicate keys in dicts: the last one wins, as in Python, and a note says so.
#include <algorithm>

#include "formats/core/error.h"
#include "formats/pickle_machine.h"

namespace llmctl::formats {
namespace {

constexpr size_t kMaxNotes = 8;

/// Whether keys of this kind are compared by content. Others are equal only to themselves.
bool has_comparable_content(PickleKind kind) {
  return kind == PickleKind::kText || kind == PickleKind::kInt;
}

}  // namespace

void PickleMachine::drop_duplicate_keys() {
  // The stack and memo are done with; their share of the budget pays for what follows.
  charged_bytes_ -= std::min<uint64_t>(charged_bytes_, memo_.capacity() * sizeof(uint32_t));
  std::vector<uint32_t>().swap(memo_);
  sparse_memo_.clear();
  std::vector<uint32_t>().swap(stack_);

  // Equal keys get one number. Each key node is compared once for the whole pickle rather than once
  // for each dict that holds it, or a memoised long key in many small dicts would take for ever.
  const uint32_t num_nodes = static_cast<uint32_t>(arena_.nodes.size());
  constexpr uint32_t kIsKey = kNoNode - 1;
  std::vector<uint32_t> dicts, keys, number;
  for (uint32_t i = 0; i < num_nodes; ++i) {
    if (arena_[i].kind == PickleKind::kDict && arena_[i].low > 2) dicts.push_back(i);
  }
  if (dicts.empty()) return;
  charge(sizeof(uint32_t) * (uint64_t{num_nodes} + dicts.size()));
  number.assign(num_nodes, kNoNode);
  for (const uint32_t dict : dicts) {
    const auto items = arena_.items(arena_[dict]);
    for (size_t i = 0; i < items.size(); i += 2) {
      if (number[items[i]] == kNoNode) {
        charge(3 * sizeof(uint32_t));
        number[items[i]] = kIsKey;
        keys.push_back(items[i]);
      }
    }
  }
  const auto compare = [&](uint32_t a, uint32_t b) -> int {
    const PickleArenaNode &x = arena_[a], &y = arena_[b];
    if (x.kind != y.kind) return x.kind < y.kind ? -1 : 1;
    if (x.kind == PickleKind::kText) return arena_.text(a).compare(arena_.text(b));
    if (x.kind == PickleKind::kInt) return x.integer < y.integer ? -1 : x.integer > y.integer;
    return a < b ? -1 : a > b;
  };
  std::sort(keys.begin(), keys.end(), [&](uint32_t a, uint32_t b) { return compare(a, b) < 0; });
  uint32_t next = 0;
  for (size_t i = 0; i < keys.size(); ++i) {
    const bool is_equal =
        i > 0 && has_comparable_content(arena_[keys[i]].kind) && compare(keys[i - 1], keys[i]) == 0;
    if (i > 0 && !is_equal) ++next;
    number[keys[i]] = next;
  }

  // For each key number: the dict in which it was seen last, and at which pair.
  std::vector<uint32_t> seen_in(keys.size(), kNoNode), seen_at(keys.size(), 0);
  for (const uint32_t dict : dicts) {
    const uint32_t first = arena_[dict].items.first, count = arena_[dict].low;
    uint32_t num_duplicates = 0, duplicate = kNoNode;
    for (uint32_t i = 0; i < count; i += 2) {
      uint32_t& seen = seen_in[number[arena_.pool[first + i]]];
      if (seen == dict) {
        num_duplicates++;
        duplicate = arena_.pool[first + i];
      }
      seen = dict;
    }
    if (num_duplicates == 0) continue;
    // The run may be shared with another dict, so the shorter one is written behind the pool.
    charge(sizeof(uint32_t) * (uint64_t{count} - 2 * num_duplicates));
    const uint32_t start = static_cast<uint32_t>(arena_.pool.size());
    for (uint32_t i = 0; i < count; i += 2) seen_in[number[arena_.pool[first + i]]] = kNoNode;
    for (uint32_t i = 0; i < count; i += 2) {
      const uint32_t key = arena_.pool[first + i], value = arena_.pool[first + i + 1];
      const uint32_t n = number[key];
      if (seen_in[n] == dict) {
        arena_.pool[seen_at[n]] = value;
      } else {
        seen_in[n] = dict;
        seen_at[n] = static_cast<uint32_t>(arena_.pool.size()) + 1;
        arena_.pool.push_back(key);
        arena_.pool.push_back(value);
      }
    }
    const uint32_t new_count = static_cast<uint32_t>(arena_.pool.size()) - start;
    arena_[dict].items = {start, new_count};
    arena_[dict].low = new_count;
    if (arena_.notes.size() < kMaxNotes) {
      const std::string name =
          arena_[duplicate].kind == PickleKind::kText
              ? "'" + printable(std::string(arena_.text(duplicate).substr(0, 256))) + "'"
          : arena_[duplicate].kind == PickleKind::kInt
              ? std::to_string(arena_[duplicate].integer)
              : std::string(pickle_kind_name(arena_[duplicate].kind));
      arena_.notes.push_back(where_ + ": the key " + name +
                             " occurs more than once in a dict; the last one counts");
    }
  }
}

}  // namespace llmctl::formats
