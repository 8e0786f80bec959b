// The tokens of one forward pass while they are gathered.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "runtime/rank_model.h"

namespace llmctl::runtime {

struct Group;  // runtime/sequence.h

/// Tokens for a RankModel, and which of them ask for a new token. Once reserved, filling and
/// clearing allocate nothing.
struct Pass {
  /// Somebody who wants the logits of a token.
  struct Ask {
    Group* group = nullptr;
    int32_t member = 0;
  };

  std::vector<int32_t> ids, positions;
  std::vector<int64_t> lengths;
  std::vector<const int32_t*> block_tables;
  std::vector<int32_t> ask_rows;                         ///< index of the token in this pass
  std::vector<Ask> asks;                                 ///< by ask_rows
  std::vector<std::pair<int32_t, int32_t>> page_copies;  ///< (to, from), before the pass

  void reserve(int64_t tokens) {
    const auto n = static_cast<size_t>(tokens);
    ids.reserve(n);
    positions.reserve(n);
    lengths.reserve(n);
    block_tables.reserve(n);
    ask_rows.reserve(n);
    asks.reserve(n);
    page_copies.reserve(n);
  }
  void clear() {
    ids.clear();
    positions.clear();
    lengths.clear();
    block_tables.clear();
    ask_rows.clear();
    asks.clear();
    page_copies.clear();
  }
  void add(int32_t id, int64_t position, int64_t length, const int32_t* block_table) {
    ids.push_back(id);
    positions.push_back(static_cast<int32_t>(position));
    lengths.push_back(length);
    block_tables.push_back(block_table);
  }
  /// The token added last asks for the next one.
  void ask(Ask who) {
    ask_rows.push_back(static_cast<int32_t>(ids.size() - 1));
    asks.push_back(who);
  }
  int64_t size() const { return static_cast<int64_t>(ids.size()); }
  Step step() const { return {ids, positions, lengths, block_tables}; }
};

}  // namespace llmctl::runtime
