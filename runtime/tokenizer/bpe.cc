#include "runtime/tokenizer/bpe.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <queue>

#include "formats/core/error.h"
#include "runtime/tokenizer/unicode.h"

namespace llmctl::runtime::tokenizer {

namespace {

constexpr size_t kShortPiece = 48;
constexpr int32_t kNoRank = std::numeric_limits<int32_t>::max();

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

Bpe::Bpe(Vocabulary vocabulary, const Merges& merges, BpeOptions options, const std::string& where)
    : vocabulary_(std::move(vocabulary)), options_(std::move(options)) {
  if (options_.unk_token) {
    unk_id_ = vocabulary_.find(*options_.unk_token);
    if (!unk_id_) {
      throw_invalid(
          where, "unk_token '" + printable(*options_.unk_token, 60) + "' is not in the vocabulary");
    }
  }
  byte_ids_ = find_byte_tokens(vocabulary_);
  character_ids_.assign(0x10000, -1);
  for (char32_t c = 0; c < 0x10000; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string spelling;
    append_utf8(c, spelling);
    if (const auto id = vocabulary_.find(spelling)) character_ids_[c] = *id;
  }

  table_.assign(std::bit_ceil(std::max<size_t>(16, merges.size() * 2)), Merge{kNoPair, 0, 0});
  shift_ = 64 - std::countr_zero(table_.size());
  const std::string& prefix = options_.continuing_subword_prefix;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    const auto missing = [&](const std::string& token) {
      throw_invalid(where, "merge " + std::to_string(rank) + " ('" + printable(left, 40) + "' '" +
                               printable(right, 40) + "') needs the token '" +
                               printable(token, 80) + "', which is not in the vocabulary");
    };
    const auto left_id = vocabulary_.find(left);
    if (!left_id) missing(left);
    const auto right_id = vocabulary_.find(right);
    if (!right_id) missing(right);
    const std::string merged =
        left + (right.starts_with(prefix) ? right.substr(prefix.size()) : right);
    const auto merged_id = vocabulary_.find(merged);
    if (!merged_id) missing(merged);
    insert_merge(*left_id, *right_id, static_cast<int32_t>(rank), *merged_id);
  }
  if (options_.long_pieces) find_joints(merges);
}

// A merge joins the last character of its left token to the first of its right one. Where no merge
// joins two characters the text can be cut without a change: between words, mostly, so that the
// heap is left to texts that have none. Two pairs may share a bit; that only spares a cut.
void Bpe::find_joints(const Merges& merges) {
  if (!options_.continuing_subword_prefix.empty() || !options_.end_of_word_suffix.empty()) return;
  joints_.assign(std::bit_ceil(std::max<size_t>(1 << 16, merges.size() * 8)), false);
  joints_shift_ = 64 - std::countr_zero(joints_.size());
  const auto edge = [&](std::string_view token, bool at_end) {
    size_t begin = at_end ? token.size() - 1 : 0;
    while (at_end && (static_cast<uint8_t>(token[begin]) & 0xC0) == 0x80) --begin;
    size_t end = begin;
    next_code_point(token, end);
    return vocabulary_.find(token.substr(begin, end - begin));
  };
  // Of byte tokens and the unknown token the spelling is not the text.
  const auto stands_for_other_text = [&](const std::string& token) {
    return token == options_.unk_token ||
           (token.size() == 6 && token.starts_with("<0x") && token.ends_with('>'));
  };
  for (const auto& [left, right] : merges) {
    if (left.empty() || right.empty()) continue;
    if (stands_for_other_text(left) || stands_for_other_text(right)) {
      joints_.clear();
      return;
    }
    const auto l = edge(left, true), r = edge(right, false);
    if (l && r) joints_[slot_of(pair_key(*l, *r), joints_shift_)] = true;
  }
}

bool Bpe::may_join(int32_t left, int32_t right) const {
  return joints_[slot_of(pair_key(left, right), joints_shift_)];
}

size_t Bpe::slot_of(uint64_t pair, int shift) {
  // Fibonacci hashing: the high bits of the product depend on all bits of the pair.
  return static_cast<size_t>((pair * 0x9E3779B97F4A7C15u) >> shift);
}

void Bpe::insert_merge(int32_t left, int32_t right, int32_t rank, int32_t id) {
  const uint64_t pair = pair_key(left, right);
  size_t slot = slot_of(pair, shift_);
  while (table_[slot].pair != kNoPair && table_[slot].pair != pair) {
    slot = (slot + 1) & (table_.size() - 1);
  }
  table_[slot] = {pair, rank, id};  // of two equal pairs the later counts, as in the library
}

const Bpe::Merge* Bpe::find_merge(int32_t left, int32_t right) const {
  const uint64_t pair = pair_key(left, right);
  for (size_t slot = slot_of(pair, shift_);; slot = (slot + 1) & (table_.size() - 1)) {
    if (table_[slot].pair == pair) return &table_[slot];
    if (table_[slot].pair == kNoPair) return nullptr;
  }
}

void Bpe::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  if (options_.ignore_merges) {
    if (const auto id = vocabulary_.find(piece)) {
      ids.push_back(*id);
      return;
    }
  }
  std::vector<int32_t> symbols;
  start_symbols(piece, symbols);
  if (symbols.size() <= kShortPiece || joints_.empty()) {
    merge(symbols, ids);
    return;
  }
  std::vector<int32_t> part;
  for (size_t begin = 0; begin < symbols.size();) {
    size_t end = begin + 1;
    while (end < symbols.size() && may_join(symbols[end - 1], symbols[end])) ++end;
    part.assign(symbols.begin() + static_cast<std::ptrdiff_t>(begin),
                symbols.begin() + static_cast<std::ptrdiff_t>(end));
    merge(part, ids);
    begin = end;
  }
}

void Bpe::merge(std::vector<int32_t>& symbols, std::vector<int32_t>& ids) const {
  if (symbols.size() <= kShortPiece) {
    merge_short(symbols);
  } else {
    merge_long(symbols);
  }
  ids.insert(ids.end(), symbols.begin(), symbols.end());
}

void Bpe::start_symbols(std::string_view piece, std::vector<int32_t>& symbols) const {
  const bool plain =
      options_.continuing_subword_prefix.empty() && options_.end_of_word_suffix.empty();
  // An unknown token is held back until the next known symbol, so that a run can be fused; byte
  // tokens in between overtake it. The library does the same, and ids must equal its ids.
  bool unk_pending = false;
  std::string spelling;
  for (size_t position = 0; position < piece.size();) {
    const size_t begin = position;
    const char32_t c = next_code_point(piece, position);
    int32_t id = -1;
    std::string_view symbol = piece.substr(begin, position - begin);
    if (!plain) {
      spelling.clear();
      if (begin > 0) spelling += options_.continuing_subword_prefix;
      spelling += symbol;
      if (position == piece.size()) spelling += options_.end_of_word_suffix;
      symbol = spelling;
    }
    if (plain && c < 0x10000) {
      id = character_ids_[c];
    } else if (const auto found = vocabulary_.find(symbol)) {
      id = *found;
    }
    if (id >= 0) {
      if (unk_pending) symbols.push_back(*unk_id_);
      unk_pending = false;
      symbols.push_back(id);
      continue;
    }
    if (options_.byte_fallback && std::all_of(symbol.begin(), symbol.end(), [&](char byte) {
          return byte_ids_[static_cast<uint8_t>(byte)].has_value();
        })) {
      for (const char byte : symbol) symbols.push_back(*byte_ids_[static_cast<uint8_t>(byte)]);
      continue;
    }
    // Without an unknown token the character vanishes.
    if (!unk_id_) continue;
    if (unk_pending && !options_.fuse_unk) symbols.push_back(*unk_id_);
    unk_pending = true;
  }
  if (unk_pending) symbols.push_back(*unk_id_);
}

void Bpe::merge_short(std::vector<int32_t>& symbols) const {
  size_t count = symbols.size();
  if (count < 2) return;
  // merges[i] is the merge of symbols i and i + 1.
  std::array<const Merge*, kShortPiece> merges;
  for (size_t i = 0; i + 1 < count; ++i) merges[i] = find_merge(symbols[i], symbols[i + 1]);
  while (true) {
    int32_t best_rank = kNoRank;
    size_t best = 0;
    for (size_t i = 0; i + 1 < count; ++i) {
      if (merges[i] != nullptr && merges[i]->rank < best_rank) {
        best_rank = merges[i]->rank;
        best = i;
      }
    }
    if (best_rank == kNoRank) break;
    symbols[best] = merges[best]->id;
    --count;
    for (size_t i = best + 1; i < count; ++i) symbols[i] = symbols[i + 1];
    for (size_t i = best + 1; i + 1 < count; ++i) merges[i] = merges[i + 1];
    if (best > 0) merges[best - 1] = find_merge(symbols[best - 1], symbols[best]);
    if (best + 1 < count) merges[best] = find_merge(symbols[best], symbols[best + 1]);
  }
  symbols.resize(count);
}

void Bpe::merge_long(std::vector<int32_t>& symbols) const {
  struct Candidate {
    int32_t rank;
    uint32_t position;  ///< of the left symbol
    int32_t id;
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
    const Merge* merge = find_merge(symbols[left], symbols[next[left]]);
    if (merge != nullptr) heap.push({merge->rank, left, merge->id});
  };
  for (uint32_t i = 0; i + 1 < count; ++i) offer(i);
  while (!heap.empty()) {
    const Candidate top = heap.top();
    heap.pop();
    const uint32_t left = top.position;
    if (symbols[left] == kGone || next[left] == kEnd) continue;
    const uint32_t right = next[left];
    const Merge* merge = find_merge(symbols[left], symbols[right]);
    if (merge == nullptr || merge->id != top.id) continue;  // one side has changed since
    symbols[left] = merge->id;
    symbols[right] = kGone;
    next[left] = next[right];
    if (next[right] != kEnd) previous[next[right]] = left;
    if (previous[left] != kEnd) offer(previous[left]);
    if (next[left] != kEnd) offer(left);
  }
  std::erase(symbols, kGone);
}

}  // namespace llmctl::runtime::tokenizer
