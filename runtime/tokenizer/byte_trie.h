// A prefix tree over bytes, for finding every known string at the front of a text.
#pragma once

#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace llmctl::runtime::tokenizer {

/// Built by insert, then immutable and safe to share.
class ByteTrie {
 public:
  using Node = uint32_t;
  static constexpr Node kRoot = 0;
  static constexpr Node kNone = ~Node{0};

  /// Binds `value` (not negative) to `key`. False when the key has a value already; that one stays.
  bool insert(std::string_view key, int32_t value) {
    Node node = kRoot;
    for (const char c : key) {
      const auto [edge, inserted] =
          edges_.emplace(edge_key(node, c), static_cast<Node>(values_.size()));
      if (inserted) values_.push_back(-1);
      node = edge->second;
    }
    if (values_[node] >= 0) return false;
    values_[node] = value;
    return true;
  }

  /// The node behind `byte`, or kNone.
  Node step(Node node, char byte) const {
    const auto edge = edges_.find(edge_key(node, byte));
    return edge == edges_.end() ? kNone : edge->second;
  }
  /// The value of the key that ends at `node`, -1 for none.
  int32_t value(Node node) const { return values_[node]; }

 private:
  static uint64_t edge_key(Node node, char byte) {
    return uint64_t{node} << 8 | static_cast<uint8_t>(byte);
  }

  std::unordered_map<uint64_t, Node> edges_;
  std::vector<int32_t> values_ = {-1};
};

}  // namespace llmctl::runtime::tokenizer
