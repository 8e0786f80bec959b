// Nodes, stack and memo of the pickle machine: everything that grows, and the budget for it.
#include <algorithm>
#include <cstring>

#include "formats/pickle_machine.h"

namespace llmctl::formats {
namespace {

// Values on the stack at once. CPython's pickler writes lists and dicts in batches of 1000 and only
// tuples whole.
constexpr size_t kMaxStack = size_t{1} << 20;

}  // namespace

void PickleMachine::charge(uint64_t bytes) {
  charged_bytes_ += bytes;
  if (charged_bytes_ > limits_.max_memory_bytes) {
    fail("reading it takes more than " + std::to_string(limits_.max_memory_bytes >> 20) +
         " MiB of nodes");
  }
}

uint32_t PickleMachine::add_node(PickleKind kind) {
  charge(sizeof(PickleArenaNode));
  arena_.nodes.emplace_back().kind = kind;
  return static_cast<uint32_t>(arena_.nodes.size() - 1);
}

uint32_t PickleMachine::add_int(int64_t value) {
  // Shapes and strides repeat a few numbers; integers are immutable, so nodes may be shared.
  uint32_t& recent = recent_ints_[(static_cast<uint64_t>(value) * 0x9E3779B97F4A7C15u) >> 54];
  if (recent != kNoNode && arena_[recent].integer == value) return recent;
  const uint32_t index = add_node(PickleKind::kInt);
  arena_[index].integer = value;
  recent = index;
  return index;
}

uint32_t PickleMachine::add_span(PickleKind kind, uint64_t length) {
  need(length);
  if (kind == PickleKind::kText && length > limits_.max_text_bytes) {
    fail("a text of " + std::to_string(length) + " bytes; at most " +
         std::to_string(limits_.max_text_bytes) + " are accepted");
  }
  if (length >> 48 != 0) fail("an impossible length");
  const uint32_t index = add_node(kind);
  PickleArenaNode& node = arena_[index];
  node.offset = position_;
  node.low = static_cast<uint32_t>(length);
  node.high = static_cast<uint16_t>(length >> 32);
  position_ += length;
  return index;
}

uint32_t PickleMachine::add_line(const char* what) {
  const uint64_t window = std::min(remaining(), kMaxGlobalName + 1);
  const std::byte* start = arena_.input.data() + position_;
  const void* end = window == 0 ? nullptr : std::memchr(start, '\n', static_cast<size_t>(window));
  if (end == nullptr) fail(std::string("GLOBAL: the ") + what + " name does not end");
  const uint32_t index = add_span(
      PickleKind::kText, static_cast<uint64_t>(static_cast<const std::byte*>(end) - start));
  ++position_;
  return index;
}

uint32_t PickleMachine::depth(uint32_t index) const {
  const PickleArenaNode& node = arena_[index];
  return PickleArena::is_container(node.kind) || node.kind == PickleKind::kObject ? node.high : 0;
}

void PickleMachine::raise_depth(uint32_t container, std::span<const uint32_t> items) {
  uint32_t deepest = depth(container);
  for (const uint32_t item : items) deepest = std::max(deepest, depth(item) + 1);
  if (deepest > limits_.max_depth) {
    fail("nested deeper than " + std::to_string(limits_.max_depth) + " levels");
  }
  arena_[container].high = static_cast<uint16_t>(deepest);
}

uint32_t PickleMachine::add_container(PickleKind kind, std::span<const uint32_t> items) {
  const uint32_t index = add_node(kind);
  arena_[index].items = {static_cast<uint32_t>(arena_.pool.size()), 0};
  if (!items.empty()) append(index, items);
  return index;
}

uint32_t PickleMachine::add_copy(PickleKind kind, uint32_t source) {
  const uint32_t index = add_node(kind);
  auto& pool = arena_.pool;
  const PickleArenaNode from = arena_[source];
  const size_t start = pool.size();
  charge(sizeof(uint32_t) * uint64_t{from.low});
  pool.resize(start + from.low);
  std::copy_n(pool.begin() + from.items.first, from.low,
              pool.begin() + static_cast<ptrdiff_t>(start));
  arena_[index].items = {static_cast<uint32_t>(start), from.low};
  arena_[index].low = from.low;
  arena_[index].high = from.high;
  return index;
}

void PickleMachine::append(uint32_t container, std::span<const uint32_t> items) {
  raise_depth(container, items);
  auto& pool = arena_.pool;
  PickleArenaNode& node = arena_[container];
  const uint64_t count = uint64_t{node.low} + items.size();
  if (count > node.items.capacity) {
    const bool is_last =
        node.items.capacity != 0 && uint64_t{node.items.first} + node.items.capacity == pool.size();
    // A tuple is never appended to; everything else doubles, so that moving stays linear.
    const uint64_t capacity =
        node.low == 0 ? count : std::max<uint64_t>(count, 2 * uint64_t{node.low});
    const uint64_t start = is_last ? node.items.first : pool.size();
    charge((start + capacity - pool.size()) * sizeof(uint32_t));
    pool.resize(static_cast<size_t>(start + capacity));
    if (!is_last) {
      std::copy_n(pool.begin() + node.items.first, node.low,
                  pool.begin() + static_cast<ptrdiff_t>(start));
    }
    node.items = {static_cast<uint32_t>(start), static_cast<uint32_t>(capacity)};
  }
  std::copy(items.begin(), items.end(), pool.begin() + node.items.first + node.low);
  node.low = static_cast<uint32_t>(count);
}

void PickleMachine::push(uint32_t index) {
  if (stack_.size() >= kMaxStack)
    fail("more than " + std::to_string(kMaxStack) + " values on the stack");
  stack_.push_back(index);
}

uint32_t PickleMachine::pop() {
  const uint32_t index = top();
  stack_.pop_back();
  return index;
}

uint32_t& PickleMachine::top() {
  if (stack_.empty()) fail("the stack is empty");
  if (!marks_.empty() && stack_.size() <= marks_.back()) fail("a mark where a value is expected");
  return stack_.back();
}

size_t PickleMachine::pop_mark() {
  if (marks_.empty()) fail("no mark on the stack");
  const size_t height = marks_.back();
  marks_.pop_back();
  return height;
}

std::span<const uint32_t> PickleMachine::above(size_t height) const {
  return std::span(stack_).subspan(height);
}

void PickleMachine::memoize(uint64_t slot) {
  const uint32_t value = top();
  // Gaps are legal, so the number itself must not decide how much is allocated.
  if (slot < memo_.size() || slot <= 2 * memo_count_ + 1024) {
    if (slot >= memo_.size()) {
      charge((slot + 1 - memo_.size()) * sizeof(uint32_t));
      memo_.resize(static_cast<size_t>(slot + 1), kNoNode);
    }
    uint32_t& entry = memo_[static_cast<size_t>(slot)];
    if (entry == kNoNode && sparse_memo_.erase(slot) == 0) ++memo_count_;
    entry = value;
    return;
  }
  const auto [entry, is_new] = sparse_memo_.try_emplace(slot, value);
  if (is_new) {
    charge(64);  // a hash node and its share of the table
    ++memo_count_;
  }
  entry->second = value;
}

void PickleMachine::recall(uint64_t slot) {
  uint32_t value = kNoNode;
  if (slot < memo_.size()) value = memo_[static_cast<size_t>(slot)];
  if (value == kNoNode) {
    const auto entry = sparse_memo_.find(slot);
    if (entry == sparse_memo_.end()) fail("memo entry " + std::to_string(slot) + " is not set");
    value = entry->second;
  }
  push(value);
}

}  // namespace llmctl::formats
