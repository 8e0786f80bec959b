#include "runtime/logits_processor.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "formats/core/error.h"

namespace llmctl::runtime {
namespace {

/// Whether `text` ends with all ids of `word` but its last.
bool is_at_last_id(const std::vector<int32_t>& word, std::span<const int32_t> prompt,
                   std::span<const int32_t> generated) {
  const size_t before = word.size() - 1;
  if (before > prompt.size() + generated.size()) return false;
  for (size_t i = 0; i < before; ++i) {
    const size_t back = before - i;  // from the end, 1 is the last
    const int32_t id = back <= generated.size() ? generated[generated.size() - back]
                                                : prompt[prompt.size() - (back - generated.size())];
    if (id != word[i]) return false;
  }
  return true;
}

}  // namespace

void check_logits_rules(const LogitsRules& rules, int64_t vocab_size) {
  if (!(rules.repetition_penalty > 0) || !std::isfinite(rules.repetition_penalty)) {
    throw_usage("--repetition-penalty", "must be a finite number above 0", "1 penalises nothing");
  }
  if (!std::isfinite(rules.presence_penalty)) {
    throw_usage("--presence-penalty", "must be a finite number", "0 penalises nothing");
  }
  if (!std::isfinite(rules.frequency_penalty)) {
    throw_usage("--frequency-penalty", "must be a finite number", "0 penalises nothing");
  }
  if (rules.min_new_tokens < 0) throw_usage("--min-new-tokens", "must be at least 0");
  for (const auto& word : rules.bad_words) {
    if (word.empty()) throw_usage("--bad-words", "a bad word has no tokens");
    for (const int32_t id : word) {
      if (id >= 0 && id < vocab_size) continue;
      throw_usage("--bad-words", "token id " + std::to_string(id) +
                                     " is outside the vocabulary of " + std::to_string(vocab_size));
    }
  }
}

LogitsProcessor::LogitsProcessor(int64_t vocab_size)
    : vocab_size_(vocab_size),
      row_(static_cast<size_t>(vocab_size)),
      counts_(static_cast<size_t>(vocab_size)) {}

const float* LogitsProcessor::process(const float* row, const LogitsRules& rules,
                                      std::span<const int32_t> prompt,
                                      std::span<const int32_t> generated,
                                      std::span<const int64_t> stop_ids) {
  const bool too_short = static_cast<int64_t>(generated.size()) < rules.min_new_tokens;
  const bool repeats = rules.repetition_penalty != 1.0;
  const bool counts = rules.presence_penalty != 0 || rules.frequency_penalty != 0;
  if (!repeats && !counts && rules.bad_words.empty() && !too_short) return row;
  std::copy_n(row, vocab_size_, row_.begin());

  if (repeats) {
    const auto penalty = static_cast<float>(rules.repetition_penalty);
    const auto punish = [&](int32_t id) {
      const auto i = static_cast<size_t>(id);
      if (counts_[i]++ > 0) return;  // once, however often it stands there
      row_[i] = row_[i] < 0 ? row_[i] * penalty : row_[i] / penalty;
    };
    for (const int32_t id : prompt) punish(id);
    for (const int32_t id : generated) punish(id);
    for (const int32_t id : prompt) counts_[static_cast<size_t>(id)] = 0;
    for (const int32_t id : generated) counts_[static_cast<size_t>(id)] = 0;
  }
  if (counts) {
    for (const int32_t id : generated) ++counts_[static_cast<size_t>(id)];
    for (const int32_t id : generated) {
      const auto i = static_cast<size_t>(id);
      if (counts_[i] == 0) continue;
      row_[i] -= static_cast<float>(rules.presence_penalty +
                                    rules.frequency_penalty * static_cast<double>(counts_[i]));
      counts_[i] = 0;
    }
  }
  for (const auto& word : rules.bad_words) {
    if (is_at_last_id(word, prompt, generated)) row_[static_cast<size_t>(word.back())] = -INFINITY;
  }
  if (too_short) {
    for (const int64_t id : stop_ids) {
      if (id >= 0 && id < vocab_size_) row_[static_cast<size_t>(id)] = -INFINITY;
    }
  }
  if (std::all_of(row_.begin(), row_.end(), [](float x) { return x == -INFINITY; }) &&
      std::any_of(row, row + vocab_size_, [](float x) { return x > -INFINITY; })) {
    throw_usage("--bad-words, --min-new-tokens", "together they leave no token to choose");
  }
  return row_.data();
}

}  // namespace llmctl::runtime
