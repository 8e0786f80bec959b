#include "runtime/batch_loop.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "formats/core/cancel.h"
#include "formats/core/error.h"
#include "runtime/cache_room.h"
#include "runtime/chooser.h"
#include "runtime/parallel.h"
#include "runtime/scheduler.h"

namespace llmctl::runtime {
namespace {

using Clock = std::chrono::steady_clock;

double ms_between(Clock::time_point a, Clock::time_point b) {
  return std::chrono::duration<double, std::milli>(b - a).count();
}

/// The last stage's first rank has whole rows of logits and chooses.
int sampler_rank(const RankPlace& place) { return (place.pp - 1) * place.tp; }

std::string size_text(uint64_t bytes) {
  const uint64_t mebibytes = bytes >> 20;
  return mebibytes >= 10 ? std::to_string(mebibytes) + " MiB"
                         : std::to_string(bytes >> 10) + " KiB";
}

/// Pages for as many of the requests at once as the batch takes, the hungriest of them.
int64_t wanted_pages(std::span<const GenerateRequest> requests, int64_t limit, int64_t page_size,
                     const BatchOptions& options, const CacheRoom& room) {
  std::vector<int64_t> needs;
  for (size_t i = 0; i < requests.size(); ++i) {
    const int64_t pages = max_pages(requests[i], limit, page_size);
    if (pages > room.max_pages()) {
      const auto bytes = static_cast<double>(pages) * static_cast<double>(room.page_bytes());
      const uint64_t needed = bytes < 1e18 ? static_cast<uint64_t>(bytes) : UINT64_MAX;
      throw_usage(requests.size() == 1 ? "the request" : "request " + std::to_string(i + 1),
                  "a prompt of " + std::to_string(requests[i].prompt_ids.size()) +
                      " tokens with --max-new-tokens " +
                      std::to_string(requests[i].max_new_tokens) +
                      (requests[i].width() > 1
                           ? " and " + std::to_string(requests[i].width()) + " sequences"
                           : "") +
                      " needs a KV cache of " + size_text(needed) + ", and there is room for " +
                      size_text(static_cast<uint64_t>(room.max_pages()) * room.page_bytes()),
                  "raise --kv-memory, or ask for fewer tokens");
    }
    needs.push_back(pages);
  }
  std::sort(needs.begin(), needs.end(), std::greater<>());
  int64_t sum = 0;
  for (size_t i = 0; i < needs.size(); ++i) {
    if (options.batch_size > 0 && static_cast<int64_t>(i) >= options.batch_size) break;
    sum = std::min(sum + needs[i], room.max_pages());
  }
  return std::max(sum, options.kv_tokens / page_size);
}

/// The batch on one rank. The stages of the pipeline work on different passes at a time: in turn t
/// every rank gathers pass t, and stage s computes pass t - s. So a pass is gathered with the same
/// knowledge on all ranks, namely of what the passes up to t - stages have brought.
class BatchLoop {
 public:
  BatchLoop(RankModel& model, const RankComm& comm, const ModelConfig& config,
            std::span<const GenerateRequest> requests, const BatchOptions& options,
            const BatchCaller& caller, const std::function<bool()>& should_stop)
      : model_(model),
        comm_(comm),
        place_(model.place()),
        samples_(place_.rank() == sampler_rank(place_)),
        caller_(caller),
        should_stop_(should_stop),
        scheduler_(requests, config, model.cache(), options, place_.pp, samples_),
        passes_(static_cast<size_t>(place_.pp)),
        vocab_size_(config.vocab_size) {
    for (Pass& pass : passes_) pass.reserve(options.chunk_tokens);
    if (samples_) chooser_.emplace(vocab_size_, options.tokenizer);
    results_.resize(caller.report != nullptr ? requests.size() : 0);
  }

  void run() {
    const auto start = Clock::now();
    last_first_token_ = start;
    for (int64_t turn = 0; !scheduler_.done(); ++turn) {
      if (samples_) throw_if_cancelled();
      Pass& next = pass(turn);
      next.clear();
      scheduler_.fill(next);
      if (hands_over_) model_.hand_over(comm_);
      hands_over_ = turn >= place_.pp_rank && compute(pass(turn - place_.pp_rank));
      if (turn >= place_.pp - 1) finish(pass(turn - (place_.pp - 1)));
    }
    report(start);
  }

 private:
  Pass& pass(int64_t number) {
    return passes_[static_cast<size_t>(number % static_cast<int64_t>(passes_.size()))];
  }

  /// Whether there was anything to compute.
  bool compute(const Pass& pass) {
    if (pass.size() == 0) return false;
    for (const auto& [to, from] : pass.page_copies) model_.cache().copy_page(to, from);
    model_.compute(pass.step(), comm_);
    return true;
  }

  void finish(const Pass& pass) {
    if (pass.asks.empty()) return;
    answers_.lay_out(pass);
    if (place_.is_last_stage()) choose(pass);
    const int root = sampler_rank(place_);
    comm_.world->broadcast(answers_.choices.data(), answers_.choices.size() * sizeof(Choice), root);
    if (!answers_.top.empty()) {
      comm_.world->broadcast(answers_.top.data(), answers_.top.size() * sizeof(TokenLogprob), root);
    }
    accept(pass);
  }

  void choose(const Pass& pass) {
    const bool interrupted = samples_ && should_stop_ && should_stop_();
    if (samples_) chooser_->begin();
    constexpr size_t kMost = RankModel::kMaxLogitRows;
    for (size_t first = 0; first < pass.ask_rows.size(); first += kMost) {
      const size_t count = std::min(kMost, pass.ask_rows.size() - first);
      const float* logits = model_.logits(std::span(pass.ask_rows).subspan(first, count), comm_);
      if (samples_) chooser_->answer(pass, first, count, logits, interrupted, answers_);
    }
  }

  void accept(const Pass& pass) {
    std::span<const Choice> choices = answers_.choices;
    std::span<const TokenLogprob> top = answers_.top;
    for (size_t first = 0; first < pass.asks.size();) {
      Group& group = *pass.asks[first].group;
      const size_t num_asks = count_asks(pass, first);
      const size_t count = count_choices(group, num_asks);
      const auto top_each = static_cast<size_t>(std::max<int64_t>(group.request->num_logprobs, 0));
      first += num_asks;
      if (!group.forked) {
        last_first_token_ = Clock::now();
        scheduler_.fork(group);
      }
      if (group.request->beams.num_beams > 1) {
        group.advance_beams(choices.first(count), model_.cache().pages());
      } else {
        for (size_t i = 0; i < count; ++i) {
          group.accept(choices[i], top.subspan(i * top_each, top_each));
          notify(group, choices[i].id);
        }
      }
      choices = choices.subspan(count);
      top = top.subspan(count * top_each);
      const size_t index = group.index;
      if (auto result = scheduler_.answered(group)) deliver(index, std::move(*result));
    }
  }

  void notify(const Group& group, int32_t id) const {
    if (caller_.callbacks == nullptr || !caller_.callbacks->on_token) return;
    if (group.request->width() == 1) caller_.callbacks->on_token(group.index, id);
  }

  void deliver(size_t index, GenerateResult result) {
    if (caller_.callbacks != nullptr && caller_.callbacks->on_done) {
      caller_.callbacks->on_done(index, result);
    }
    if (caller_.report != nullptr) results_[index] = std::move(result);
  }

  void report(Clock::time_point start) {
    if (caller_.report == nullptr) return;
    GenerateReport& report = *caller_.report;
    report.prefill_ms = ms_between(start, last_first_token_);
    report.decode_ms = ms_between(last_first_token_, Clock::now());
    report.prompt_tokens = scheduler_.prompt_tokens();
    report.reused_tokens = scheduler_.reused_tokens();
    const auto count = [&](const GenerateResult& result) {
      // The first token of each came out of its prompt's pass.
      report.decoded_tokens += std::max<int64_t>(0, static_cast<int64_t>(result.ids.size()) - 1);
    };
    for (const GenerateResult& result : results_) {
      count(result);
      for (const GenerateResult& other : result.others) count(other);
    }
    report.results = std::move(results_);
  }

  RankModel& model_;
  const RankComm& comm_;
  RankPlace place_;
  bool samples_;
  const BatchCaller& caller_;
  const std::function<bool()>& should_stop_;
  Scheduler scheduler_;
  std::vector<Pass> passes_;  // under way, by number modulo the stages
  int64_t vocab_size_;
  std::optional<Chooser> chooser_;
  Choices answers_;
  bool hands_over_ = false;  // the turn before left activations for the next stage
  std::vector<GenerateResult> results_;
  Clock::time_point last_first_token_;
};

}  // namespace

void generate_batch(RankModel& model, const RankComm& comm, const ModelConfig& config,
                    std::span<const GenerateRequest> requests, const BatchOptions& options,
                    const BatchCaller& caller, const std::function<bool()>& should_stop) {
  CacheRoom room(model, comm, options);
  room.grow_to(
      wanted_pages(requests, context_limit(config), model.cache().page_size(), options, room));
  BatchLoop(model, comm, config, requests, options, caller, should_stop).run();
  room.finish();
}

void compute_prompt_logits(RankModel& model, const RankComm& comm, const ModelConfig& config,
                           std::span<const int32_t> ids, const BatchOptions& options,
                           const LogitsSink& sink) {
  CacheRoom room(model, comm, options);
  PagedCache& cache = model.cache();
  const int rank = model.place().rank();
  const int sender = sampler_rank(model.place());
  GenerateRequest request;
  request.prompt_ids.assign(ids.begin(), ids.end());
  request.max_new_tokens = 1;
  room.grow_to(wanted_pages({&request, 1}, 0, cache.page_size(), options, room));
  const auto num_tokens = static_cast<int64_t>(ids.size());
  std::vector<int32_t> pages;
  for (int64_t i = 0; i < cache.pages_for(num_tokens); ++i) pages.push_back(cache.pages().take());

  std::vector<float> received;
  if (rank == 0 && sender != 0) {
    received.resize(static_cast<size_t>(RankModel::kMaxLogitRows * config.vocab_size));
  }
  Pass pass;
  pass.reserve(options.chunk_tokens);
  for (int64_t begin = 0; begin < num_tokens; begin += options.chunk_tokens) {
    const int64_t end = std::min(num_tokens, begin + options.chunk_tokens);
    pass.clear();
    for (int64_t p = begin; p < end; ++p) {
      pass.add(ids[static_cast<size_t>(p)], p, num_tokens, pages.data());
      pass.ask({});
    }
    if (rank == sender) throw_if_cancelled();
    model.forward(pass.step(), comm);
    for (int64_t first = 0; first < end - begin; first += RankModel::kMaxLogitRows) {
      const int64_t count = std::min(RankModel::kMaxLogitRows, end - begin - first);
      const float* logits = nullptr;
      if (model.place().is_last_stage()) {
        logits = model.logits(std::span(pass.ask_rows)
                                  .subspan(static_cast<size_t>(first), static_cast<size_t>(count)),
                              comm);
      }
      const auto bytes = static_cast<size_t>(count * config.vocab_size) * sizeof(float);
      if (sender != 0 && rank == sender) comm.world->send(logits, bytes, 0);
      if (sender != 0 && rank == 0) {
        comm.world->recv(received.data(), bytes, sender);
        logits = received.data();
      }
      if (rank == 0) sink(begin + first, count, logits);
    }
  }
  cache.pages().give_back(pages);
  room.finish();
}

}  // namespace llmctl::runtime
