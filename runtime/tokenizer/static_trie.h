// A prefix tree over bytes that is built once and walked fast: a double array.
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace llmctl::runtime::tokenizer {

/// Finds every known string at the front of a text, a byte a step, each step one load from a
/// table (Aoe 1989). Immutable; safe to share between threads.
class StaticTrie {
 public:
  using Node = uint32_t;
  static constexpr Node kRoot = 0;
  static constexpr Node kNone = ~Node{0};

  StaticTrie() = default;
  /// `entries` are (key, value); keys are not empty, values not negative. Of equal keys the first
  /// counts. Requires: the sum of the lengths of the keys below 2^31.
  explicit StaticTrie(std::vector<std::pair<std::string_view, int32_t>> entries);

  /// The node behind `byte`, or kNone.
  Node step(Node node, char byte) const {
    if (units_.empty()) return kNone;
    const Node child = units_[node].base ^ static_cast<uint8_t>(byte);
    return units_[child].parent == node ? child : kNone;
  }
  /// The value of the key that ends at `node`, -1 for none.
  int32_t value(Node node) const { return units_[node].value; }

  /// Does any key begin with `byte`?
  bool may_start_with(char byte) const { return step(kRoot, byte) != kNone; }
  /// The longest key at the front of `text`, as its length and value; length 0 for none.
  std::pair<size_t, int32_t> longest_prefix(std::string_view text) const;

 private:
  struct Unit {
    uint32_t base = 0;  ///< xor a byte: the place of that child. Always inside the table
    Node parent = kNone;
    int32_t value = -1;
  };
  std::vector<Unit> units_;  ///< whole blocks of 256, so that no child lies outside
};

}  // namespace llmctl::runtime::tokenizer
