#include "runtime/tokenizer/sentencepiece_bpe.h"

#include <algorithm>
#include <functional>

#include "runtime/tokenizer/unicode.h"

namespace llmctl::runtime::tokenizer {

namespace {

bool is_one_character(std::string_view text) {
  size_t end = 0;
  next_code_point(text, end);
  return end == text.size();
}

std::string_view first_character(std::string_view text) {
  size_t end = 0;
  next_code_point(text, end);
  return text.substr(0, end);
}

std::string_view last_character(std::string_view text) {
  size_t begin = text.size() - 1;
  while ((static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
  return text.substr(begin);
}

}  // namespace

SentencePieceBpe::SentencePieceBpe(const SentencePieces& pieces, bool merges) : pieces_(pieces) {
  if (merges) {
    const std::vector<MergeTable::Rule> rules = find_rules();
    table_ = MergeTable(rules);
    find_joints(rules);
  }
  character_symbols_.assign(0x10000, -1);
  for (char32_t c = 0; c < 0x10000; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string spelling;
    append_utf8(c, spelling);
    if (const auto id = pieces_.find_text(spelling)) {
      character_symbols_[c] = *id;
    } else if (const auto extra = extra_symbols_.find(spelling); extra != extra_symbols_.end()) {
      character_symbols_[c] = extra->second;
    }
  }
  const auto num_symbols = pieces_.size() + static_cast<int32_t>(extra_texts_.size());
  for (int32_t symbol = 0; symbol < num_symbols; ++symbol) {
    output_ids_.push_back(pieces_.id_of(text_of(symbol)));
  }
}

int32_t SentencePieceBpe::make_symbol(std::string_view text) {
  if (const auto id = pieces_.find_text(text)) return *id;
  if (!is_one_character(text)) return -1;
  const auto [entry, is_new] =
      extra_symbols_.emplace(text, pieces_.size() + static_cast<int32_t>(extra_texts_.size()));
  if (is_new) extra_texts_.push_back(text);
  return entry->second;
}

std::vector<MergeTable::Rule> SentencePieceBpe::find_rules() {
  std::vector<float> scores;
  for (int32_t id = 0; id < pieces_.size(); ++id) {
    if (pieces_[id].is_text()) scores.push_back(pieces_[id].score);
  }
  std::sort(scores.begin(), scores.end(), std::greater<float>());
  scores.erase(std::unique(scores.begin(), scores.end()), scores.end());
  const auto rank_of = [&](float score) {
    const auto place = std::lower_bound(scores.begin(), scores.end(), score, std::greater<float>());
    return static_cast<int32_t>(place - scores.begin());
  };
  std::vector<MergeTable::Rule> rules;
  for (int32_t id = 0; id < pieces_.size(); ++id) {
    const SentencePiece& piece = pieces_[id];
    // A user-defined piece is found before merging begins, so that none is made by it.
    if (!piece.is_text() || piece.type == SentencePiece::Type::kUserDefined) continue;
    const std::string_view text = piece.spelling;
    size_t middle = 0;
    next_code_point(text, middle);
    if (middle < text.size() && piece.type == SentencePiece::Type::kUnused) has_unused_ = true;
    for (; middle < text.size(); next_code_point(text, middle)) {
      // The left side is looked for first: few beginnings of a long piece are pieces.
      const int32_t left = make_symbol(text.substr(0, middle));
      if (left < 0) continue;
      const int32_t right = make_symbol(text.substr(middle));
      if (right >= 0) rules.push_back({left, right, rank_of(piece.score), id});
    }
  }
  return rules;
}

void SentencePieceBpe::find_joints(const std::vector<MergeTable::Rule>& rules) {
  std::vector<std::pair<int32_t, int32_t>> joints;
  joints.reserve(rules.size());
  for (const MergeTable::Rule& rule : rules) {
    // A character that is no symbol yet is part of no merge, so that this one cannot come about.
    const auto symbol_of = [&](std::string_view text) {
      size_t position = 0;
      return find_character(next_code_point(text, position), text);
    };
    const int32_t left = symbol_of(last_character(text_of(rule.left)));
    const int32_t right = symbol_of(first_character(text_of(rule.right)));
    if (left >= 0 && right >= 0) joints.emplace_back(left, right);
  }
  table_.set_joints(joints);
}

int32_t SentencePieceBpe::find_character(char32_t c, std::string_view text) const {
  if (c < character_symbols_.size()) return character_symbols_[c];
  if (const auto id = pieces_.find_text(text)) return *id;
  const auto extra = extra_symbols_.find(text);
  return extra == extra_symbols_.end() ? -1 : extra->second;
}

std::string_view SentencePieceBpe::text_of(int32_t symbol) const {
  if (symbol < pieces_.size()) return pieces_[symbol].spelling;
  return extra_texts_[static_cast<size_t>(symbol - pieces_.size())];
}

void SentencePieceBpe::push(int32_t symbol, SentencePieceSink& sink) const {
  sink.push(output_ids_[static_cast<size_t>(symbol)], text_of(symbol));
}

template <typename Symbol, typename Other>
void SentencePieceBpe::read(std::string_view text, const Symbol& symbol, const Other& other) const {
  const StaticTrie& user_defined = pieces_.user_defined();
  for (size_t position = 0; position < text.size();) {
    const size_t begin = position;
    const auto length = user_defined.longest_prefix(text.substr(begin)).first;
    if (length > 0) {
      position += length;
      other(text.substr(begin, length));
      continue;
    }
    const char32_t c = next_code_point(text, position);
    const std::string_view character = text.substr(begin, position - begin);
    const int32_t found = find_character(c, character);
    if (found >= 0) {
      symbol(found);
    } else {
      other(character);
    }
  }
}

void SentencePieceBpe::encode(std::string_view text, SentencePieceSink& sink) const {
  if (has_unused_) {
    encode_with_unused(text, sink);
    return;
  }
  std::vector<int32_t> run, merged;
  const auto end_run = [&] {
    table_.merge(run, merged);
    for (const int32_t symbol : merged) push(symbol, sink);
    run.clear();
    merged.clear();
  };
  read(
      text, [&](int32_t symbol) { run.push_back(symbol); },
      [&](std::string_view other) {
        end_run();
        sink.push(pieces_.id_of(other), other);
      });
  end_run();
}

// An unused piece takes part in merging and is then taken apart again, into the two halves that it
// was last seen in, anywhere in the text. The order of all merges therefore counts.
void SentencePieceBpe::encode_with_unused(std::string_view text, SentencePieceSink& sink) const {
  const auto num_symbols = static_cast<int32_t>(output_ids_.size());
  std::vector<std::string_view> others;  ///< of symbols behind all others, which merge with nothing
  std::vector<int32_t> symbols;
  read(
      text, [&](int32_t symbol) { symbols.push_back(symbol); },
      [&](std::string_view other) {
        symbols.push_back(num_symbols + static_cast<int32_t>(others.size()));
        others.push_back(other);
      });
  std::vector<MergeTable::Halves> halves(output_ids_.size(), {-1, -1});
  table_.merge_tracing(symbols, halves);
  std::vector<int32_t> pending;
  for (const int32_t whole : symbols) {
    pending.push_back(whole);
    while (!pending.empty()) {
      const int32_t symbol = pending.back();
      pending.pop_back();
      if (symbol >= num_symbols) {
        const std::string_view other = others[static_cast<size_t>(symbol - num_symbols)];
        sink.push(pieces_.id_of(other), other);
        continue;
      }
      const auto [left, right] = halves[static_cast<size_t>(symbol)];
      if (symbol < pieces_.size() && pieces_[symbol].type == SentencePiece::Type::kUnused &&
          left >= 0) {
        pending.push_back(right);
        pending.push_back(left);
      } else {
        push(symbol, sink);
      }
    }
  }
}

}  // namespace llmctl::runtime::tokenizer
