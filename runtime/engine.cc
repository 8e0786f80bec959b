#include "runtime/engine.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "formats/core/error.h"
#include "formats/core/thread_pool.h"
#include "reshard/model.h"
#include "reshard/quantization.h"
#include "runtime/cuda/back_end.h"
#include "runtime/decoder.h"
#include "runtime/layout.h"
#include "runtime/parallel.h"

namespace llmctl::runtime {
namespace {

enum class Order : uint64_t { kEnd, kGenerate, kPromptLogits };

/// What rank 0 wants all ranks to do. The others learn it from the broadcast.
struct Job {
  Order order = Order::kEnd;
  std::vector<std::byte> payload;
};

void broadcast_job(Job& job, const RankComm& comm) {
  uint64_t head[2] = {static_cast<uint64_t>(job.order), job.payload.size()};
  comm.world->broadcast(head, sizeof head, 0);
  job.order = static_cast<Order>(head[0]);
  job.payload.resize(head[1]);
  if (head[1] > 0) comm.world->broadcast(job.payload.data(), job.payload.size(), 0);
}

std::vector<int32_t> decode_ids(std::span<const std::byte> bytes) {
  std::vector<int32_t> ids(bytes.size() / sizeof(int32_t));
  std::memcpy(ids.data(), bytes.data(), ids.size() * sizeof(int32_t));
  return ids;
}

}  // namespace

struct Engine::Impl {
  ModelConfig config;
  EngineOptions options;
  std::unique_ptr<RankGroup> ranks;
  // By rank; null for those of other processes.
  std::vector<std::unique_ptr<ThreadPool>> pools;
  std::vector<std::unique_ptr<RankModel>> models;
  cuda::Placement placement;  // of this process, on GPUs
  uint64_t weight_bytes = 0;

  bool leads() const { return ranks->local_ranks().front() == 0; }
  bool spans_processes() const {
    return static_cast<int>(ranks->local_ranks().size()) < ranks->world_size();
  }

  cuda::ModelOptions cuda_options() const;
  std::unique_ptr<RankModel> make_model(int rank, const RankPlace& place,
                                        reshard::RankWeights weights);
  void load(int rank, const RankComm& comm, const reshard::Model& model);
  /// The GPU back end computes with plain matrices: what an export's integers stand for.
  void leave_out_integers(const reshard::Model& model);
  /// Who is served by a job; members that a job does not need are missing.
  struct Client {
    const GenerateCallbacks* callbacks = nullptr;
    GenerateReport* report = nullptr;
    const LogitsSink* sink = nullptr;
  };

  /// Does `job` on all ranks.
  void lead(const Job& job, const Client& client);
  void run_job(int rank, const RankComm& comm, const Job& job, const Client& client);
};

void Engine::Impl::leave_out_integers(const reshard::Model& model) {
  if (options.quantization && *options.quantization) {
    throw_usage("--quant", "on GPUs matrices are F16 or BF16", "leave it out");
  }
  if (!reshard::quantization_of(model.checkpoint())) return;
  options.quantization = kernels::Quantization{};
  // The one that the model had; F32 is what the integers stand for.
  if (!options.dtype) options.dtype = config.dtype;
}

cuda::ModelOptions Engine::Impl::cuda_options() const {
  return {options.dtype, options.kv_dtype, options.batch.chunk_tokens, options.page_size};
}

std::unique_ptr<RankModel> Engine::Impl::make_model(int rank, const RankPlace& place,
                                                    reshard::RankWeights weights) {
  ThreadPool& pool = *pools[static_cast<size_t>(rank)];
  if (options.device == Device::kCuda) {
    const auto& local = ranks->local_ranks();
    const auto at = std::find(local.begin(), local.end(), rank) - local.begin();
    return cuda::make_model(config, place, std::move(weights), pool, placement,
                            static_cast<int>(at), cuda_options());
  }
  return std::make_unique<Decoder>(config, place, std::move(weights), pool,
                                   options.batch.chunk_tokens, options.page_size,
                                   options.kv_dtype.value_or(DType::F32), options.activations);
}

void Engine::Impl::load(int rank, const RankComm& comm, const reshard::Model& model) {
  const auto i = static_cast<size_t>(rank);
  const RankPlace place = place_of_rank(config, options.tp, options.pp, rank);
  const reshard::RankSlice slice{options.tp, place.tp_rank, place.first_layer, place.end_layer};
  auto weights = reshard::load_rank(model, weight_layout(config, place), slice, options.dtype,
                                    *pools[i], options.quantization);
  uint64_t bytes = weights.total_bytes();
  models[i] = make_model(rank, place, std::move(weights));
  std::vector<uint64_t> all(static_cast<size_t>(ranks->world_size()));
  comm.world->all_gather(all.data(), &bytes, sizeof bytes);
  if (rank != ranks->local_ranks().front()) return;
  for (const uint64_t b : all) weight_bytes += b;
}

void Engine::Impl::run_job(int rank, const RankComm& comm, const Job& job, const Client& client) {
  RankModel& rank_model = *models[static_cast<size_t>(rank)];
  switch (job.order) {
    case Order::kEnd:
      return;
    case Order::kGenerate: {
      const std::vector<GenerateRequest> requests = decode_requests(job.payload);
      BatchCaller caller;
      if (rank == 0) caller = {client.callbacks, client.report};
      const auto should_stop =
          client.callbacks != nullptr ? client.callbacks->should_stop : std::function<bool()>();
      return generate_batch(rank_model, comm, config, requests, options.batch, caller, should_stop);
    }
    case Order::kPromptLogits: {
      const LogitsSink none;
      return compute_prompt_logits(rank_model, comm, config, decode_ids(job.payload), options.batch,
                                   client.sink != nullptr ? *client.sink : none);
    }
  }
  throw Error(ErrorCode::kInternal, "rank 0 asks for something unknown");
}

void Engine::Impl::lead(const Job& job, const Client& client) {
  if (!leads()) throw Error(ErrorCode::kInternal, "only the process of rank 0 may ask");
  ranks->run([&](int rank, const RankComm& comm) {
    Job mine;
    if (rank == 0) mine = job;
    broadcast_job(mine, comm);
    run_job(rank, comm, mine, client);
  });
}

Engine::Engine(const reshard::Model& model, const EngineOptions& options,
               std::unique_ptr<RankGroup> ranks)
    : impl_(std::make_unique<Impl>()) {
  Impl& self = *impl_;
  self.config = model.config();
  self.options = options;
  if (options.rope_in_bf16) self.config.rope_in_bf16 = *options.rope_in_bf16;
  check_parallel_sizes(self.config, options.tp, options.pp);
  if (options.device == Device::kCuda) {
    self.leave_out_integers(model);
  } else {
    reshard::choose_quantization(model, options.quantization);
  }
  self.ranks = ranks ? std::move(ranks) : make_thread_ranks(options.tp, options.pp);
  const int world = self.ranks->world_size();
  if (world != options.tp * options.pp) {
    throw Error(ErrorCode::kInternal, "a group of " + std::to_string(world) +
                                          " ranks for a grid of " +
                                          std::to_string(options.tp * options.pp));
  }
  self.models.resize(static_cast<size_t>(world));
  self.pools.resize(static_cast<size_t>(world));
  if (options.device == Device::kCuda) {
    const auto& here = self.ranks->local_ranks();
    self.placement = cuda::place_ranks(static_cast<int>(here.size()), options.share_device);
    cuda::check_model(model, self.config, options.tp, options.pp, here, self.placement,
                      self.cuda_options());
  }
  const int threads = options.threads > 0 ? options.threads : available_cores();
  const auto& local = self.ranks->local_ranks();
  for (const int rank : local) {
    self.pools[static_cast<size_t>(rank)] =
        std::make_unique<ThreadPool>(std::max(1, threads / static_cast<int>(local.size())));
  }
  self.ranks->run([&](int rank, const RankComm& comm) { self.load(rank, comm, model); });
}

Engine::~Engine() {
  if (!impl_->spans_processes() || !impl_->leads()) return;
  try {
    impl_->lead({}, {});
  } catch (...) {
    // The others have ended by themselves, or never heard of this engine's work.
  }
}

const ModelConfig& Engine::config() const { return impl_->config; }
uint64_t Engine::weight_bytes() const { return impl_->weight_bytes; }

void Engine::follow() {
  if (impl_->leads()) throw Error(ErrorCode::kInternal, "the process of rank 0 cannot follow");
  Order last = Order::kGenerate;
  while (last != Order::kEnd) {
    try {
      impl_->ranks->run([&](int rank, const RankComm& comm) {
        Job job;
        broadcast_job(job, comm);
        impl_->run_job(rank, comm, job, {});
        if (rank == impl_->ranks->local_ranks().front()) last = job.order;
      });
    } catch (const Error& error) {
      // A request that is refused is refused on all ranks, and for rank 0's caller to hear of.
      if (error.code() != ErrorCode::kUsage) throw;
    }
  }
}

GenerateReport Engine::generate(std::span<const GenerateRequest> requests,
                                const GenerateCallbacks& callbacks) {
  for (const GenerateRequest& request : requests) {
    check_request(request, impl_->config);
    if (request.width() > impl_->options.batch.chunk_tokens) {
      throw_usage(std::to_string(request.width()) + " sequences side by side",
                  "one pass takes " + std::to_string(impl_->options.batch.chunk_tokens) +
                      " tokens, one of each");
    }
    if (!request.stop_strings.empty() && impl_->options.batch.tokenizer == nullptr) {
      throw_usage("--stop", "the model has no tokenizer, so there is no text to stop at",
                  "use --stop-ids");
    }
  }
  GenerateReport report;
  if (requests.empty()) return report;
  impl_->lead({Order::kGenerate, encode_requests(requests)}, {&callbacks, &report, nullptr});
  return report;
}

GenerateReport Engine::generate(std::span<const GenerateRequest> requests,
                                const TokenCallback& on_token) {
  GenerateCallbacks callbacks;
  callbacks.on_token = on_token;
  return generate(requests, callbacks);
}

void Engine::prompt_logits(std::span<const int32_t> ids, const LogitsSink& sink) {
  GenerateRequest request;
  request.prompt_ids.assign(ids.begin(), ids.end());
  request.max_new_tokens = 1;
  check_request(request, impl_->config);
  Job job{Order::kPromptLogits, std::vector<std::byte>(ids.size_bytes())};
  std::memcpy(job.payload.data(), ids.data(), ids.size_bytes());
  impl_->lead(job, {nullptr, nullptr, &sink});
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
