#include "runtime/sequence.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

namespace llmctl::runtime {
namespace {

bool contains(const std::vector<int64_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0 ? 1 : 0); }

}  // namespace

void Sequence::continue_from(const Sequence& parent) {
  ids.assign(parent.ids.begin(), parent.ids.end());
  logprobs.assign(parent.logprobs.begin(), parent.logprobs.end());
  cached = parent.cached;
  dropped = parent.dropped;
  done = false;
  cumulative_logprob = parent.cumulative_logprob;
  score = parent.score;
  chained = parent.chained;
  node = parent.node;
  page_key = parent.page_key;
}

void Group::accept(const Choice& choice, std::span<const TokenLogprob> top) {
  Sequence& s = members[static_cast<size_t>(choice.member)];
  s.ids.push_back(choice.id);
  if (request->num_logprobs >= 0) {
    s.logprobs.push_back(choice.logprob);
    s.cumulative_logprob += static_cast<double>(choice.logprob);
    s.top_logprobs.insert(s.top_logprobs.end(), top.begin(), top.end());
  }
  s.done = true;
  if (contains(request->stop_ids, choice.id)) {
    s.stop_reason = StopReason::kStopId;
  } else if (choice.ends_text) {
    s.stop_reason = StopReason::kStopString;
  } else if (static_cast<int64_t>(s.ids.size()) >= request->max_new_tokens) {
    s.stop_reason = StopReason::kLength;
  } else if (choice.interrupted) {
    s.stop_reason = StopReason::kInterrupted;
  } else {
    s.done = false;
  }
}

int64_t Group::num_candidates() const {
  const auto stops = static_cast<int64_t>(request->stop_ids.size());
  return std::max<int64_t>(2, 1 + stops) * request->beams.num_beams;
}

void Group::advance_beams(std::span<const Choice> candidates, PagePool& pool) {
  const BeamParams& beams = request->beams;
  const auto width = static_cast<size_t>(beams.num_beams);
  const int64_t length = static_cast<int64_t>(members[0].ids.size()) + 1;
  const auto penalty = [&](int64_t tokens) {
    return static_cast<float>(std::pow(static_cast<double>(tokens), beams.length_penalty));
  };
  const bool always = beams.early_stopping == EarlyStopping::kAlways;
  const bool accepts = may_improve && !(always && finished.size() == width);

  bool interrupted = false;
  size_t num_next = 0;
  for (size_t rank = 0; rank < candidates.size() && candidates[rank].id >= 0; ++rank) {
    const Choice& choice = candidates[rank];
    const Sequence& parent = members[static_cast<size_t>(choice.member)];
    const bool stops = contains(request->stop_ids, choice.id);
    interrupted |= choice.interrupted;
    if (!stops && !choice.ends_text && !choice.interrupted && length < request->max_new_tokens) {
      if (num_next == width) continue;
      Sequence& next = spare[num_next++];
      next.continue_from(parent);
      next.ids.push_back(choice.id);
      next.logprobs.push_back(choice.logprob);
      next.cumulative_logprob += static_cast<double>(choice.logprob);
      next.score = choice.score;
      next.pages.assign(parent.pages.begin(), parent.pages.end());
      for (const int32_t page : next.pages) pool.share(page);
      continue;
    }
    // Of the candidates that end only those count that would have been beams.
    if (rank >= width || !accepts) continue;
    GenerateResult result;
    result.score = static_cast<double>(choice.score / penalty(length));
    const auto place = std::find_if(finished.begin(), finished.end(),
                                    [&](const auto& other) { return other.score < result.score; });
    if (place == finished.end() && finished.size() == width) continue;
    result.ids = parent.ids;
    result.ids.push_back(choice.id);
    result.logprobs = parent.logprobs;
    result.logprobs.push_back(choice.logprob);
    result.cumulative_logprob = parent.cumulative_logprob + static_cast<double>(choice.logprob);
    result.stop_reason = stops                ? StopReason::kStopId
                         : choice.ends_text   ? StopReason::kStopString
                         : choice.interrupted ? StopReason::kInterrupted
                                              : StopReason::kLength;
    finished.insert(place, std::move(result));
    if (finished.size() > width) finished.pop_back();
  }
  for (Sequence& s : members) {
    pool.give_back(s.pages);
    s.pages.clear();
  }
  members.swap(spare);
  members.resize(num_next == 0 ? 1 : num_next);
  spare.resize(width);

  if (num_next > 0) {
    const bool never = beams.early_stopping == EarlyStopping::kNever && beams.length_penalty > 0;
    const float best = members[0].score / penalty(never ? request->max_new_tokens : length);
    const double worst =
        finished.size() == width ? finished.back().score : -std::numeric_limits<double>::infinity();
    may_improve = may_improve && static_cast<double>(best) > worst;
  }
  const bool over =
      num_next == 0 || !may_improve || interrupted || (always && finished.size() == width);
  if (!over) return;
  for (Sequence& s : members) {
    pool.give_back(s.pages);
    s.pages.clear();
    s.done = true;
  }
}

GenerateResult Group::take_result() {
  std::vector<GenerateResult> all;
  if (request->beams.num_beams > 1) {
    all = std::move(finished);
    all.resize(std::min(all.size(), static_cast<size_t>(request->num_sequences)));
  } else {
    for (Sequence& s : members) {
      GenerateResult& result = all.emplace_back();
      result.ids = std::move(s.ids);
      result.stop_reason = s.stop_reason;
      result.logprobs = std::move(s.logprobs);
      result.top_logprobs = std::move(s.top_logprobs);
      result.cumulative_logprob = s.cumulative_logprob;
    }
  }
  if (all.empty()) return {};
  GenerateResult result = std::move(all.front());
  result.others.assign(std::make_move_iterator(all.begin() + 1),
                       std::make_move_iterator(all.end()));
  return result;
}

int64_t max_cached_tokens(const GenerateRequest& request, int64_t limit) {
  if (request.max_new_tokens == 0) return 0;
  const auto prompt = static_cast<int64_t>(request.prompt_ids.size());
  int64_t tokens = 0;
  if (__builtin_add_overflow(prompt, request.max_new_tokens - 1, &tokens)) {
    tokens = std::numeric_limits<int64_t>::max();
  }
  const bool slides = request.overflow == ContextOverflow::kSlide && limit > 0;
  return slides ? std::min(tokens, limit) : tokens;
}

int64_t max_pages(const GenerateRequest& request, int64_t limit, int64_t page_size) {
  const int64_t pages = ceil_div(max_cached_tokens(request, limit), page_size);
  if (request.width() == 1) return pages;
  const int64_t shared =
      std::min(pages, static_cast<int64_t>(request.prompt_ids.size()) / page_size);
  int64_t own = 0, all = 0;
  if (__builtin_mul_overflow(pages - shared, request.width(), &own) ||
      __builtin_add_overflow(shared, own, &all)) {
    return std::numeric_limits<int64_t>::max();
  }
  return all;
}

}  // namespace llmctl::runtime
