#include "runtime/engine.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <exception>
#include <mutex>
#include <new>
#include <string>
#include <thread>

#include "formats/core/cancel.h"
#include "formats/core/error.h"
#include "reshard/model.h"
#include "runtime/decoder.h"
#include "runtime/layout.h"
#include "runtime/parallel.h"

namespace llmctl::runtime {
namespace {

using Clock = std::chrono::steady_clock;

double ms_between(Clock::time_point a, Clock::time_point b) {
  return std::chrono::duration<double, std::milli>(b - a).count();
}

/// Tokens of a request that can ever be in the cache: the last one generated is never fed back.
int64_t max_cached_tokens(const GenerateRequest& request) {
  if (request.max_new_tokens == 0) return 0;
  return static_cast<int64_t>(request.prompt_ids.size()) + request.max_new_tokens - 1;
}

/// One request on its way. Every rank keeps its own copy and all copies stay equal, because each
/// new id is broadcast.
struct Sequence {
  const GenerateRequest* request = nullptr;
  GenerateResult result;
  std::vector<int32_t> pages;
  int64_t cached = 0;  ///< tokens whose keys and values are in the cache

  int64_t prompt_size() const { return static_cast<int64_t>(request->prompt_ids.size()); }
  int64_t known() const { return prompt_size() + static_cast<int64_t>(result.ids.size()); }
  int32_t id(int64_t position) const {
    return position < prompt_size() ? request->prompt_ids[static_cast<size_t>(position)]
                                    : result.ids[static_cast<size_t>(position - prompt_size())];
  }
  bool done() const {
    return result.stopped || static_cast<int64_t>(result.ids.size()) >= request->max_new_tokens;
  }
};

/// The tokens of the next pass, and which of them ask for a new token.
struct Pending {
  std::vector<int32_t> ids, positions;
  std::vector<int64_t> lengths;
  std::vector<const int32_t*> block_tables;
  std::vector<int32_t> ask_rows;  ///< index of the token in this pass
  std::vector<size_t> ask_sequences;

  void reserve(int64_t tokens) {
    const auto n = static_cast<size_t>(tokens);
    ids.reserve(n);
    positions.reserve(n);
    lengths.reserve(n);
    block_tables.reserve(n);
    ask_rows.reserve(n);
    ask_sequences.reserve(n);
  }
  void clear() {
    ids.clear();
    positions.clear();
    lengths.clear();
    block_tables.clear();
    ask_rows.clear();
    ask_sequences.clear();
  }
  int64_t size() const { return static_cast<int64_t>(ids.size()); }
  Step step() const { return {ids, positions, lengths, block_tables}; }
};

}  // namespace

void check_request(const GenerateRequest& request, const ModelConfig& config) {
  if (request.prompt_ids.empty()) throw_usage("prompt", "has no tokens");
  for (const int32_t id : request.prompt_ids) {
    if (id < 0 || id >= config.vocab_size) {
      throw_usage("prompt", "token id " + std::to_string(id) + " is outside the vocabulary of " +
                                std::to_string(config.vocab_size));
    }
  }
  check_sampling(request.sampling);
  if (request.max_new_tokens < 0) throw_usage("--max-new-tokens", "must be at least 0");
  const int64_t limit = context_limit(config);
  const auto prompt = static_cast<int64_t>(request.prompt_ids.size());
  if (limit > 0 && (prompt > limit || request.max_new_tokens - 1 > limit - prompt)) {
    const int64_t room = limit - prompt + 1;
    throw_usage("prompt of " + std::to_string(prompt) + " tokens",
                "with --max-new-tokens " + std::to_string(request.max_new_tokens) +
                    " it needs more than the model's " + std::to_string(limit) + " positions",
                room >= 1 ? "use --max-new-tokens " + std::to_string(room) + " or less"
                          : "shorten the prompt");
  }
}

struct Engine::Impl {
  ModelConfig config;
  EngineOptions options;
  int world = 1;
  // By rank.
  std::vector<std::unique_ptr<ThreadPool>> pools;
  std::vector<std::unique_ptr<Decoder>> decoders;
  uint64_t weight_bytes = 0;

  int sampler_rank() const { return (options.pp - 1) * options.tp; }

  /// Runs `body(rank, comm)` on a thread per rank and returns when all have ended. The first
  /// failure wakes the others and is rethrown.
  template <typename Body>
  void run_on_ranks(const Body& body);

  // What one rank does; all ranks run these in step.
  void generate_on_rank(int rank, const RankComm& comm, std::span<const GenerateRequest> requests,
                        const TokenCallback& on_token, GenerateReport& report);
  void logits_on_rank(int rank, const RankComm& comm, std::span<const int32_t> ids,
                      const LogitsSink& sink);
};

template <typename Body>
void Engine::Impl::run_on_ranks(const Body& body) {
  // Fresh communicators each time, so that an aborted call leaves nothing behind.
  auto world_comms = make_thread_communicators(world);
  std::vector<std::unique_ptr<Communicator>> tp_comms;
  for (int stage = 0; stage < options.pp; ++stage) {
    for (auto& comm : make_thread_communicators(options.tp)) tp_comms.push_back(std::move(comm));
  }
  std::mutex mutex;  // guards first_error
  std::exception_ptr first_error;
  const auto run = [&](int rank) {
    const auto i = static_cast<size_t>(rank);
    std::string message;
    try {
      body(rank, RankComm{world_comms[i].get(), tp_comms[i].get()});
      return;
    } catch (Error& error) {
      const bool named =
          world > 1 && error.code() != ErrorCode::kUsage && error.code() != ErrorCode::kInterrupted;
      if (named) error.add_context("rank " + std::to_string(rank));
      message = error.what();
      const std::lock_guard lock(mutex);
      if (!first_error) first_error = std::make_exception_ptr(error);
    } catch (const std::bad_alloc&) {
      message = "rank " + std::to_string(rank) + ": out of memory";
      const std::lock_guard lock(mutex);
      if (!first_error) {
        first_error = std::make_exception_ptr(Error(ErrorCode::kEnvironment, message));
      }
    } catch (...) {  // a callback's own exception
      message = "rank " + std::to_string(rank) + " failed";
      const std::lock_guard lock(mutex);
      if (!first_error) first_error = std::current_exception();
    }
    for (auto& comm : world_comms) comm->abort(message);
    for (auto& comm : tp_comms) comm->abort(message);
  };
  std::vector<std::thread> threads;
  try {
    for (int rank = 1; rank < world; ++rank) threads.emplace_back(run, rank);
  } catch (const std::system_error& error) {
    for (auto& comm : world_comms) comm->abort(error.what());
    for (auto& comm : tp_comms) comm->abort(error.what());
    for (auto& thread : threads) thread.join();
    throw Error(ErrorCode::kEnvironment, std::string("cannot start a thread: ") + error.what());
  }
  run(0);
  for (auto& thread : threads) thread.join();
  if (first_error) std::rethrow_exception(first_error);
}

Engine::Engine(const reshard::Model& model, const EngineOptions& options)
    : impl_(std::make_unique<Impl>()) {
  Impl& self = *impl_;
  self.config = model.config();
  self.options = options;
  if (options.rope_in_bf16) self.config.rope_in_bf16 = *options.rope_in_bf16;
  check_parallel_sizes(self.config, options.tp, options.pp);
  self.world = options.tp * options.pp;
  const int threads = options.threads > 0 ? options.threads : available_cores();
  const int threads_per_rank = std::max(1, threads / self.world);
  for (int rank = 0; rank < self.world; ++rank) {
    self.pools.push_back(std::make_unique<ThreadPool>(threads_per_rank));
  }
  const auto count = static_cast<size_t>(self.world);
  self.decoders.resize(count);
  std::vector<uint64_t> bytes(count);
  self.run_on_ranks([&](int rank, const RankComm&) {
    const auto i = static_cast<size_t>(rank);
    const RankPlace place = place_of_rank(self.config, options.tp, options.pp, rank);
    const reshard::RankSlice slice{options.tp, place.tp_rank, place.first_layer, place.end_layer};
    auto weights = reshard::load_rank(model, weight_layout(self.config, place), slice,
                                      options.dtype, *self.pools[i]);
    bytes[i] = weights.total_bytes();
    self.decoders[i] =
        std::make_unique<Decoder>(self.config, place, std::move(weights), *self.pools[i],
                                  options.chunk_tokens, options.page_size);
  });
  for (const uint64_t b : bytes) self.weight_bytes += b;
}

Engine::~Engine() = default;

const ModelConfig& Engine::config() const { return impl_->config; }
uint64_t Engine::weight_bytes() const { return impl_->weight_bytes; }

GenerateReport Engine::generate(std::span<const GenerateRequest> requests,
                                const TokenCallback& on_token) {
  for (const GenerateRequest& request : requests) check_request(request, impl_->config);
  GenerateReport report;
  report.results.resize(requests.size());
  if (requests.empty()) return report;
  impl_->run_on_ranks([&](int rank, const RankComm& comm) {
    impl_->generate_on_rank(rank, comm, requests, on_token, report);
  });
  return report;
}

void Engine::Impl::generate_on_rank(int rank, const RankComm& comm,
                                    std::span<const GenerateRequest> requests,
                                    const TokenCallback& on_token, GenerateReport& report) {
  Decoder& decoder = *decoders[static_cast<size_t>(rank)];
  KvCache& cache = decoder.cache();
  const bool samples = rank == sampler_rank();
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
  Pending pending;
  pending.reserve(options.chunk_tokens);
  std::array<int32_t, Decoder::kMaxLogitRows> chosen{};

  const auto take = [&](Sequence& sequence, size_t index) {
    const int64_t position = sequence.cached++;
    if (position % cache.page_size() == 0) sequence.pages.push_back(cache.take_page());
    pending.ids.push_back(sequence.id(position));
    pending.positions.push_back(static_cast<int32_t>(position));
    pending.lengths.push_back(sequence.known());
    pending.block_tables.push_back(sequence.pages.data());
    if (sequence.cached == sequence.known()) {
      pending.ask_rows.push_back(static_cast<int32_t>(pending.size() - 1));
      pending.ask_sequences.push_back(index);
    }
  };

  const auto accept = [&](size_t index, int32_t id) {
    Sequence& sequence = sequences[index];
    sequence.result.ids.push_back(id);
    const auto& stops = sequence.request->stop_ids;
    sequence.result.stopped = std::find(stops.begin(), stops.end(), id) != stops.end();
    if (samples && on_token) on_token(index, id);
    if (sequence.done()) cache.give_back(sequence.pages);
  };

  const auto run_pass = [&] {
    if (samples) throw_if_cancelled();
    decoder.forward(pending.step(), comm);
    for (size_t first = 0; first < pending.ask_rows.size(); first += chosen.size()) {
      const size_t count = std::min(chosen.size(), pending.ask_rows.size() - first);
      if (decoder.place().is_last_stage()) {
        const float* logits =
            decoder.logits(std::span(pending.ask_rows).subspan(first, count), comm);
        for (size_t i = 0; samples && i < count; ++i) {
          const Sequence& sequence = sequences[pending.ask_sequences[first + i]];
          chosen[i] = sampler.sample(logits + static_cast<int64_t>(i) * config.vocab_size,
                                     sequence.request->sampling, sequence.known());
        }
      }
      comm.world->broadcast(chosen.data(), count * sizeof(int32_t), sampler_rank());
      for (size_t i = 0; i < count; ++i) accept(pending.ask_sequences[first + i], chosen[i]);
    }
    pending.clear();
  };

  // Prompts, packed into passes of chunk_tokens whatever their lengths.
  int64_t prompt_tokens = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    if (sequences[i].done()) continue;
    prompt_tokens += sequences[i].prompt_size();
    for (int64_t p = 0; p < sequences[i].prompt_size(); ++p) {
      take(sequences[i], i);
      if (pending.size() == options.chunk_tokens) run_pass();
    }
  }
  if (pending.size() > 0) run_pass();
  const auto prefilled = Clock::now();

  // One token of every sequence that is not done, again and again.
  for (bool any = true; any;) {
    any = false;
    for (size_t i = 0; i < sequences.size(); ++i) {
      if (sequences[i].done()) continue;
      any = true;
      take(sequences[i], i);
      if (pending.size() == options.chunk_tokens) run_pass();
    }
    if (pending.size() > 0) run_pass();
  }

  if (!samples) return;
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

void Engine::prompt_logits(std::span<const int32_t> ids, const LogitsSink& sink) {
  GenerateRequest request;
  request.prompt_ids.assign(ids.begin(), ids.end());
  request.max_new_tokens = 1;
  check_request(request, impl_->config);
  impl_->run_on_ranks(
      [&](int rank, const RankComm& comm) { impl_->logits_on_rank(rank, comm, ids, sink); });
}

void Engine::Impl::logits_on_rank(int rank, const RankComm& comm, std::span<const int32_t> ids,
                                  const LogitsSink& sink) {
  Decoder& decoder = *decoders[static_cast<size_t>(rank)];
  KvCache& cache = decoder.cache();
  const auto num_tokens = static_cast<int64_t>(ids.size());
  const int64_t num_pages = cache.pages_for(num_tokens);
  cache.reset(num_pages);
  std::vector<int32_t> pages;
  for (int64_t i = 0; i < num_pages; ++i) pages.push_back(cache.take_page());

  Pending pending;
  pending.reserve(options.chunk_tokens);
  for (int64_t begin = 0; begin < num_tokens; begin += options.chunk_tokens) {
    const int64_t end = std::min(num_tokens, begin + options.chunk_tokens);
    pending.clear();
    for (int64_t p = begin; p < end; ++p) {
      pending.ids.push_back(ids[static_cast<size_t>(p)]);
      pending.positions.push_back(static_cast<int32_t>(p));
      pending.lengths.push_back(num_tokens);
      pending.block_tables.push_back(pages.data());
      pending.ask_rows.push_back(static_cast<int32_t>(p - begin));
    }
    if (rank == sampler_rank()) throw_if_cancelled();
    decoder.forward(pending.step(), comm);
    if (!decoder.place().is_last_stage()) continue;
    for (int64_t first = 0; first < end - begin; first += Decoder::kMaxLogitRows) {
      const int64_t count = std::min(Decoder::kMaxLogitRows, end - begin - first);
      const float* logits =
          decoder.logits(std::span(pending.ask_rows)
                             .subspan(static_cast<size_t>(first), static_cast<size_t>(count)),
                         comm);
      if (rank == sampler_rank()) sink(begin + first, count, logits);
    }
  }
}

std::vector<float> Engine::prompt_logits(std::span<const int32_t> ids) {
  const auto vocab = static_cast<size_t>(impl_->config.vocab_size);
  std::vector<float> all(ids.size() * vocab);
  prompt_logits(ids, [&](int64_t first, int64_t rows, const float* logits) {
    std::copy_n(logits, static_cast<size_t>(rows) * vocab,
                all.begin() + static_cast<std::ptrdiff_t>(static_cast<size_t>(first) * vocab));
  });
  return all;
}

}  // namespace llmctl::runtime
