#include "runtime/tokenizer/added_tokens.h"

#include <algorithm>

#include "runtime/tokenizer/unicode.h"

namespace llmctl::runtime::tokenizer {

namespace {

bool word_ends_at(std::string_view text, size_t end) {
  if (end == 0) return false;
  size_t position = character_before(text, end);
  return is_word_character(next_code_point(text, position));
}

bool word_starts_at(std::string_view text, size_t begin) {
  return begin < text.size() && is_word_character(next_code_point(text, begin));
}

size_t skip_space_back(std::string_view text, size_t end) {
  while (end > 0) {
    const size_t begin = character_before(text, end);
    size_t position = begin;
    if (!is_white_space(next_code_point(text, position))) break;
    end = begin;
  }
  return end;
}

size_t skip_space(std::string_view text, size_t begin) {
  while (begin < text.size()) {
    size_t position = begin;
    if (!is_white_space(next_code_point(text, position))) break;
    begin = position;
  }
  return begin;
}

}  // namespace

void AddedTokenMatcher::add(std::string_view pattern, const AddedToken& token) {
  if (pattern.empty() || !trie_.insert(pattern, static_cast<int32_t>(tokens_.size()))) return;
  tokens_.push_back(token);
  starts_[static_cast<uint8_t>(pattern.front())] = true;
}

std::pair<size_t, const AddedToken*> AddedTokenMatcher::match_front(std::string_view text) const {
  std::pair<size_t, const AddedToken*> best = {0, nullptr};
  ByteTrie::Node node = ByteTrie::kRoot;
  for (size_t i = 0; i < text.size(); ++i) {
    node = trie_.step(node, text[i]);
    if (node == ByteTrie::kNone) break;
    const int32_t token = trie_.value(node);
    if (token >= 0) best = {i + 1, &tokens_[static_cast<size_t>(token)]};
  }
  return best;
}

void AddedTokenMatcher::split(std::string_view text, std::vector<Segment>& segments) const {
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    if (!starts_[static_cast<uint8_t>(text[at])]) {
      ++at;
      continue;
    }
    const auto [length, token] = match_front(text.substr(at));
    if (length == 0) {
      ++at;
      continue;
    }
    size_t begin = at, end = at + length;
    at = end;
    if (token->single_word && (word_ends_at(text, begin) || word_starts_at(text, end))) continue;
    // The match before may already have swallowed that space.
    if (token->lstrip) begin = std::max(skip_space_back(text, begin), done);
    if (token->rstrip) end = skip_space(text, end);
    if (done < begin) segments.push_back({done, begin, -1});
    segments.push_back({begin, end, token->id});
    done = end;
  }
  if (done < text.size()) segments.push_back({done, text.size(), -1});
}

}  // namespace llmctl::runtime::tokenizer
