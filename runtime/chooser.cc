#include "runtime/chooser.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

namespace llmctl::runtime {
namespace {

bool is_beam_search(const Group& group) { return group.request->beams.num_beams > 1; }

size_t num_top(const Group& group) {
  return static_cast<size_t>(std::max<int64_t>(group.request->num_logprobs, 0));
}

}  // namespace

size_t count_asks(const Pass& pass, size_t first) {
  size_t end = first + 1;
  while (end < pass.asks.size() && pass.asks[end].group == pass.asks[first].group) ++end;
  return end - first;
}

size_t count_choices(const Group& group, size_t num_asks) {
  if (is_beam_search(group)) return static_cast<size_t>(group.num_candidates());
  return group.forked ? num_asks : static_cast<size_t>(group.request->num_sequences);
}

void Choices::lay_out(const Pass& pass) {
  size_t num_choices = 0, num_tops = 0;
  for (size_t first = 0; first < pass.asks.size();) {
    const Group& group = *pass.asks[first].group;
    const size_t asks = count_asks(pass, first);
    const size_t answers = count_choices(group, asks);
    num_choices += answers;
    num_tops += answers * num_top(group);
    first += asks;
  }
  choices.resize(num_choices);
  top.resize(num_tops);
}

Chooser::Chooser(int64_t vocab_size, const Tokenizer* tokenizer)
    : vocab_size_(vocab_size),
      tokenizer_(tokenizer),
      sampler_(vocab_size),
      processor_(vocab_size),
      scores_(static_cast<size_t>(vocab_size)),
      order_(static_cast<size_t>(vocab_size)) {}

void Chooser::answer(const Pass& pass, size_t first, size_t num_rows, const float* logits,
                     bool interrupted, Choices& answers) {
  for (size_t i = 0; i < num_rows; ++i, logits += vocab_size_) {
    const Pass::Ask& ask = pass.asks[first + i];
    if (!is_beam_search(*ask.group)) {
      draw(*ask.group, ask.member, logits, interrupted, answers);
      continue;
    }
    collect(*ask.group, ask.member, logits);
    const bool last =
        first + i + 1 == pass.asks.size() || pass.asks[first + i + 1].group != ask.group;
    if (last) pick_best(*ask.group, interrupted, answers);
  }
}

void Chooser::draw(Group& group, int32_t member, const float* row, bool interrupted,
                   Choices& answers) {
  const GenerateRequest& request = *group.request;
  const int64_t count = group.forked ? 1 : request.num_sequences;
  const Sequence& s = group.members[static_cast<size_t>(member)];
  const int64_t position = group.known(s);
  const float* scores =
      processor_.process(row, request.rules, request.prompt_ids, s.ids, request.stop_ids);
  // The model's own logits are sound; sample() looks at what the rules made of them.
  if (scores != row) sampler_.find_best(row, position);
  for (int64_t i = 0; i < count; ++i) {
    Choice choice;
    choice.member = member + static_cast<int32_t>(i);
    choice.interrupted = interrupted;
    choice.id =
        sampler_.sample(scores, request.sampling, position, static_cast<uint32_t>(choice.member));
    if (request.num_logprobs >= 0) {
      const std::span top(answers.top.data() + next_top_, num_top(group));
      choice.logprob = sampler_.logprobs(row, choice.id, top);
      next_top_ += top.size();
    }
    const auto& stops = request.stop_ids;
    if (!group.text_ends.empty() &&
        std::find(stops.begin(), stops.end(), choice.id) == stops.end()) {
      choice.ends_text = group.text_ends[static_cast<size_t>(choice.member)].push(choice.id);
    }
    answers.choices[next_choice_++] = choice;
  }
}

/// The best continuations of one beam.
void Chooser::collect(Group& group, int32_t member, const float* row) {
  const GenerateRequest& request = *group.request;
  const Sequence& s = group.members[static_cast<size_t>(member)];
  sampler_.find_best(row, group.known(s));
  const double sum = log_sum_exp(row, vocab_size_);
  for (int64_t i = 0; i < vocab_size_; ++i) {
    scores_[static_cast<size_t>(i)] = static_cast<float>(static_cast<double>(row[i]) - sum);
  }
  const float* scores = processor_.process(scores_.data(), request.rules, request.prompt_ids, s.ids,
                                           request.stop_ids);
  std::iota(order_.begin(), order_.end(), 0);
  const auto count = std::min(group.num_candidates(), vocab_size_);
  const auto end = order_.begin() + static_cast<std::ptrdiff_t>(count);
  std::partial_sort(order_.begin(), end, order_.end(), [&](int32_t a, int32_t b) {
    return scores[a] != scores[b] ? scores[a] > scores[b] : a < b;
  });
  for (auto at = order_.begin(); at != end && scores[*at] > -INFINITY; ++at) {
    Candidate candidate;
    candidate.choice.id = *at;
    candidate.choice.member = member;
    candidate.choice.logprob = scores_[static_cast<size_t>(*at)];
    candidate.choice.score = s.score + scores[*at];
    candidate.key = static_cast<double>(candidate.choice.score) +
                    request.beams.diversity * static_cast<double>(at - order_.begin());
    candidates_.push_back(candidate);
  }
}

void Chooser::pick_best(Group& group, bool interrupted, Choices& answers) {
  // Of equals the lower beam, and its lower id, comes first.
  std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) {
    if (a.key != b.key) return a.key > b.key;
    return std::pair(a.choice.member, a.choice.id) < std::pair(b.choice.member, b.choice.id);
  });
  const auto count = static_cast<size_t>(group.num_candidates());
  for (size_t i = 0; i < count; ++i) {
    Choice choice;
    if (i < candidates_.size()) {
      choice = candidates_[i].choice;
      choice.ends_text = ends_text(group, choice);
    }
    choice.interrupted = interrupted;
    answers.choices[next_choice_++] = choice;
  }
  candidates_.clear();
}

/// Beams come and go, so each candidate's text is decoded from its start.
bool Chooser::ends_text(const Group& group, const Choice& choice) const {
  const GenerateRequest& request = *group.request;
  if (request.stop_strings.empty()) return false;
  const auto& stops = request.stop_ids;
  if (std::find(stops.begin(), stops.end(), choice.id) != stops.end()) return false;
  TextEnd text(*tokenizer_, request.prompt_ids, request.stop_strings);
  for (const int32_t id : group.members[static_cast<size_t>(choice.member)].ids) text.push(id);
  return text.push(choice.id);
}

}  // namespace llmctl::runtime
