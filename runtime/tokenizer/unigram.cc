#include "runtime/tokenizer/unigram.h"

#include <algorithm>
#include <cmath>

#include "formats/core/error.h"
#include "runtime/tokenizer/unicode.h"

namespace llmctl::runtime::tokenizer {

namespace {

constexpr double kUnknownPenalty = 10.0;

std::vector<std::pair<std::string, int64_t>> number(
    const std::vector<std::pair<std::string, double>>& pieces) {
  std::vector<std::pair<std::string, int64_t>> tokens;
  tokens.reserve(pieces.size());
  for (const auto& piece : pieces) {
    tokens.emplace_back(piece.first, static_cast<int64_t>(tokens.size()));
  }
  return tokens;
}

}  // namespace

Unigram::Unigram(const std::vector<std::pair<std::string, double>>& pieces,
                 std::optional<int32_t> unk_id, bool byte_fallback, const std::string& where)
    : vocabulary_(number(pieces), where), unk_id_(unk_id), byte_fallback_(byte_fallback) {
  if (pieces.empty()) throw_invalid(where, "the vocabulary is empty");
  double lowest = std::numeric_limits<double>::infinity();
  for (size_t id = 0; id < pieces.size(); ++id) {
    if (!std::isfinite(pieces[id].second)) throw_invalid(where, "a score that is not finite");
    scores_.push_back(pieces[id].second);
    lowest = std::min(lowest, pieces[id].second);
    if (!pieces[id].first.empty()) trie_.insert(pieces[id].first, static_cast<int32_t>(id));
  }
  unknown_score_ = lowest - kUnknownPenalty;
  byte_ids_ = find_byte_tokens(vocabulary_);
}

void Unigram::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  struct Best {
    double score = 0;
    int64_t begin = -1;  ///< of the last token on the best path to here; -1 when unreached
    int32_t id = -1;     ///< of that token; -1 for an unknown character
  };
  std::vector<Best> best(piece.size() + 1);
  const auto offer = [&](size_t begin, size_t end, double score, int32_t id) {
    Best& target = best[end];
    const double total = best[begin].score + score;
    if (target.begin < 0 || total > target.score) {
      target = {total, static_cast<int64_t>(begin), id};
    }
  };
  for (size_t begin = 0; begin < piece.size();) {
    size_t next = begin;
    next_code_point(piece, next);
    bool covered = false;
    ByteTrie::Node node = ByteTrie::kRoot;
    for (size_t end = begin; end < piece.size();) {
      node = trie_.step(node, piece[end++]);
      if (node == ByteTrie::kNone) break;
      const int32_t id = trie_.value(node);
      if (id < 0) continue;
      offer(begin, end, scores_[static_cast<size_t>(id)], id);
      covered = covered || end == next;
    }
    // The unknown token's own id may be a piece; a run of it is joined all the same.
    if (!covered) offer(begin, next, unknown_score_, unknown_id());
    begin = next;
  }

  struct Token {
    size_t begin, end;
    bool unknown;
  };
  std::vector<Token> tokens;
  for (size_t end = piece.size(); end > 0;) {
    const auto begin = static_cast<size_t>(best[end].begin);
    const bool unknown = unk_id_ && best[end].id == *unk_id_;
    if (unknown && !tokens.empty() && tokens.back().unknown) {
      tokens.back().begin = begin;
    } else {
      tokens.push_back({begin, end, unknown});
    }
    end = begin;
  }
  for (size_t i = tokens.size(); i-- > 0;) {
    const std::string_view text = piece.substr(tokens[i].begin, tokens[i].end - tokens[i].begin);
    if (const auto id = vocabulary_.find(text)) {
      ids.push_back(*id);
    } else {
      append_unknown(text, ids);
    }
  }
}

void Unigram::append_unknown(std::string_view run, std::vector<int32_t>& ids) const {
  const auto id_of = [&](char byte) { return byte_ids_[static_cast<uint8_t>(byte)]; };
  if (byte_fallback_ &&
      std::all_of(run.begin(), run.end(), [&](char byte) { return id_of(byte).has_value(); })) {
    for (const char byte : run) ids.push_back(*id_of(byte));
    return;
  }
  ids.push_back(unknown_id());
}

int32_t Unigram::unknown_id() const {
  if (!unk_id_) {
    throw_invalid("text", "a character that the tokenizer's vocabulary cannot express",
                  "the Unigram model has no unk_id");
  }
  return *unk_id_;
}

}  // namespace llmctl::runtime::tokenizer
