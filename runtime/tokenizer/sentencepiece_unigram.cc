#include "runtime/tokenizer/sentencepiece_unigram.h"

#include <algorithm>
#include <limits>

#include "runtime/tokenizer/unicode.h"

namespace llmctl::runtime::tokenizer {

namespace {

constexpr float kUnknownPenalty = 10.0f;
/// What a byte of a user-defined piece is worth at least.
constexpr float kLeastBonus = 0.1f;
/// Where a path's score gets this low, scores are counted from there on.
constexpr float kScoreFloor = -100000.0f;

}  // namespace

SentencePieceUnigram::SentencePieceUnigram(const SentencePieces& pieces) : pieces_(pieces) {
  float lowest = std::numeric_limits<float>::max();
  float highest = kLeastBonus;
  for (int32_t id = 0; id < pieces_.size(); ++id) {
    if (pieces_[id].type != SentencePiece::Type::kNormal) continue;
    lowest = std::min(lowest, pieces_[id].score);
    highest = std::max(highest, pieces_[id].score);
  }
  unknown_score_ = lowest - kUnknownPenalty;
  std::vector<std::pair<std::string_view, int32_t>> entries;
  for (int32_t id = 0; id < pieces_.size(); ++id) {
    const SentencePiece& piece = pieces_[id];
    // A user-defined piece is preferred to all others: a bonus for each of its bytes.
    const bool user_defined = piece.type == SentencePiece::Type::kUserDefined;
    scores_.push_back(user_defined ? static_cast<float>(piece.spelling.size()) * highest - 0.1f
                                   : piece.score);
    if (piece.is_text() && piece.type != SentencePiece::Type::kUnused) {
      entries.emplace_back(piece.spelling, id);
    }
  }
  trie_ = StaticTrie(std::move(entries));
}

void SentencePieceUnigram::encode(std::string_view text, SentencePieceSink& sink) const {
  struct Best {
    float score = 0;
    int32_t id = -1;    ///< of the last piece on the best path to here; -1 when unreached
    size_t length = 0;  ///< of that piece
  };
  std::vector<Best> best(text.size() + 1);
  size_t reached = 0;  ///< the furthest end of a piece so far
  for (size_t begin = 0; begin < text.size();) {
    size_t next = begin;
    next_code_point(text, next);
    if (const float base = best[begin].score; base < kScoreFloor) {
      for (size_t i = begin; i <= reached; ++i) {
        if (best[i].id >= 0) best[i].score -= base;
      }
    }
    const float so_far = best[begin].score;
    const auto offer = [&](size_t end, float score, int32_t id) {
      const float total = so_far + score;
      if (best[end].id < 0 || total > best[end].score) {
        best[end] = {total, id, end - begin};
      }
      reached = std::max(reached, end);
    };
    bool covered = false;
    StaticTrie::Node node = StaticTrie::kRoot;
    for (size_t end = begin; end < text.size();) {
      node = trie_.step(node, text[end++]);
      if (node == StaticTrie::kNone) break;
      const int32_t id = trie_.value(node);
      if (id < 0) continue;
      offer(end, scores_[static_cast<size_t>(id)], id);
      covered = covered || end == next;
    }
    if (!covered) offer(next, unknown_score_, pieces_.unk_id());
    begin = next;
  }
  std::vector<size_t> ends;
  for (size_t end = text.size(); end > 0; end -= best[end].length) ends.push_back(end);
  for (size_t i = ends.size(); i-- > 0;) {
    const Best& last = best[ends[i]];
    sink.push(last.id, text.substr(ends[i] - last.length, last.length));
  }
}

}  // namespace llmctl::runtime::tokenizer
