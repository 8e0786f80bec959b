#include "runtime/tokenizer/bpe.h"

#include <algorithm>

#include "formats/core/error.h"
#include "runtime/tokenizer/unicode.h"

namespace llmctl::runtime::tokenizer {

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

  std::vector<MergeTable::Rule> rules;
  rules.reserve(merges.size());
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
    rules.push_back({*left_id, *right_id, static_cast<int32_t>(rank), *merged_id});
  }
  merges_ = MergeTable(rules);
  if (options_.long_pieces) find_joints(merges);
}

// A merge joins the last character of its left token to the first of its right one. Where no merge
// joins two characters the text can be cut without a change: between words, mostly, so that the
// heap is left to texts that have none.
void Bpe::find_joints(const Merges& merges) {
  if (!options_.continuing_subword_prefix.empty() || !options_.end_of_word_suffix.empty()) return;
  std::vector<std::pair<int32_t, int32_t>> joints;
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
    if (stands_for_other_text(left) || stands_for_other_text(right)) return;
    const auto l = edge(left, true), r = edge(right, false);
    if (l && r) joints.emplace_back(*l, *r);
  }
  merges_.set_joints(joints);
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
  merges_.merge(symbols, ids);
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

}  // namespace llmctl::runtime::tokenizer
