#include "runtime/batch_loop.h"

#include <algorithm>
#include <array>
#include <chrono>

#include "formats/core/cancel.h"
#include "runtime/pass.h"
#include "runtime/sequence.h"

namespace llmctl::runtime {
namespace {

using Clock = std::chrono::steady_clock;

double ms_between(Clock::time_point a, Clock::time_point b) {
  return std::chrono::duration<double, std::milli>(b - a).count();
}

/// The last stage's first rank has whole rows of logits and chooses.
int sampler_rank(const RankPlace& place) { return (place.pp - 1) * place.tp; }

}  // namespace

void generate_batch(Decoder& decoder, const RankComm& comm, const ModelConfig& config,
                    std::span<const GenerateRequest> requests, int64_t chunk_tokens,
                    const BatchCaller& caller) {
  KvCache& cache = decoder.cache();
  const int chooser = sampler_rank(decoder.place());
  const bool samples = decoder.place().rank() == chooser;
  const auto start = Clock::now();

  int64_t total_pages = 0;
  for (const GenerateRequest& request : requests) {
    total_pages += cache.pages_for(max_cached_tokens(request));
  }
  cache.reset(total_pages);
  std::vector<Sequence> sequences(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    sequences[i].request = &requests[i];
    // All at once: a pass holds pointers to the block table while more pages are added.
    sequences[i].pages.reserve(
        static_cast<size_t>(cache.pages_for(max_cached_tokens(requests[i]))));
    sequences[i].result.ids.reserve(static_cast<size_t>(requests[i].max_new_tokens));
  }

  Sampler sampler(samples ? config.vocab_size : 0);
  Pass pass;
  pass.reserve(chunk_tokens);
  std::array<int32_t, Decoder::kMaxLogitRows> chosen{};

  const auto take = [&](Sequence& sequence, size_t index) {
    const int64_t position = sequence.cached++;
    if (position % cache.page_size() == 0) sequence.pages.push_back(cache.take_page());
    pass.add(sequence.id(position), position, sequence.known(), sequence.pages.data());
    if (sequence.cached == sequence.known()) pass.ask(index);
  };

  const auto accept = [&](size_t index, int32_t id) {
    Sequence& sequence = sequences[index];
    sequence.result.ids.push_back(id);
    const auto& stops = sequence.request->stop_ids;
    sequence.result.stopped = std::find(stops.begin(), stops.end(), id) != stops.end();
    if (caller.on_token != nullptr && *caller.on_token) (*caller.on_token)(index, id);
    if (sequence.done()) cache.give_back(sequence.pages);
  };

  const auto run_pass = [&] {
    if (samples) throw_if_cancelled();
    decoder.forward(pass.step(), comm);
    for (size_t first = 0; first < pass.ask_rows.size(); first += chosen.size()) {
      const size_t count = std::min(chosen.size(), pass.ask_rows.size() - first);
      if (decoder.place().is_last_stage()) {
        const float* logits = decoder.logits(std::span(pass.ask_rows).subspan(first, count), comm);
        for (size_t i = 0; samples && i < count; ++i) {
          const Sequence& sequence = sequences[pass.ask_sequences[first + i]];
          chosen[i] = sampler.sample(logits + static_cast<int64_t>(i) * config.vocab_size,
                                     sequence.request->sampling, sequence.known());
        }
      }
      comm.world->broadcast(chosen.data(), count * sizeof(int32_t), chooser);
      for (size_t i = 0; i < count; ++i) accept(pass.ask_sequences[first + i], chosen[i]);
    }
    pass.clear();
  };

  // Prompts, packed into passes of chunk_tokens whatever their lengths.
  int64_t prompt_tokens = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    if (sequences[i].done()) continue;
    prompt_tokens += sequences[i].prompt_size();
    for (int64_t p = 0; p < sequences[i].prompt_size(); ++p) {
      take(sequences[i], i);
      if (pass.size() == chunk_tokens) run_pass();
    }
  }
  if (pass.size() > 0) run_pass();
  const auto prefilled = Clock::now();

  // One token of every sequence that is not done, again and again.
  for (bool any = true; any;) {
    any = false;
    for (size_t i = 0; i < sequences.size(); ++i) {
      if (sequences[i].done()) continue;
      any = true;
      take(sequences[i], i);
      if (pass.size() == chunk_tokens) run_pass();
    }
    if (pass.size() > 0) run_pass();
  }

  if (caller.report == nullptr) return;
  GenerateReport& report = *caller.report;
  report.results.resize(requests.size());
  report.prefill_ms = ms_between(start, prefilled);
  report.decode_ms = ms_between(prefilled, Clock::now());
  report.prompt_tokens = prompt_tokens;
  for (size_t i = 0; i < sequences.size(); ++i) {
    // The first token of each came out of its prompt's pass.
    const auto generated = static_cast<int64_t>(sequences[i].result.ids.size());
    report.decoded_tokens += std::max<int64_t>(0, generated - 1);
    report.results[i] = std::move(sequences[i].result);
  }
}

void compute_prompt_logits(Decoder& decoder, const RankComm& comm, const ModelConfig& config,
                           std::span<const int32_t> ids, int64_t chunk_tokens,
                           const LogitsSink& sink) {
  KvCache& cache = decoder.cache();
  const int rank = decoder.place().rank();
  const int sender = sampler_rank(decoder.place());
  const auto num_tokens = static_cast<int64_t>(ids.size());
  const int64_t num_pages = cache.pages_for(num_tokens);
  cache.reset(num_pages);
  std::vector<int32_t> pages;
  for (int64_t i = 0; i < num_pages; ++i) pages.push_back(cache.take_page());

  std::vector<float> received;
  if (rank == 0 && sender != 0) {
    received.resize(static_cast<size_t>(Decoder::kMaxLogitRows * config.vocab_size));
  }
  Pass pass;
  pass.reserve(chunk_tokens);
  for (int64_t begin = 0; begin < num_tokens; begin += chunk_tokens) {
    const int64_t end = std::min(num_tokens, begin + chunk_tokens);
    pass.clear();
    for (int64_t p = begin; p < end; ++p) {
      pass.add(ids[static_cast<size_t>(p)], p, num_tokens, pages.data());
      pass.ask(0);
    }
    if (rank == sender) throw_if_cancelled();
    decoder.forward(pass.step(), comm);
    for (int64_t first = 0; first < end - begin; first += Decoder::kMaxLogitRows) {
      const int64_t count = std::min(Decoder::kMaxLogitRows, end - begin - first);
      const float* logits = nullptr;
      if (decoder.place().is_last_stage()) {
        logits =
            decoder.logits(std::span(pass.ask_rows)
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
}

}  // namespace llmctl::runtime
