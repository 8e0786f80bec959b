#include "runtime/bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <random>

#include "formats/core/cancel.h"
#include "kernels/quantized.h"
#include "reshard/quantization.h"
#include "reshard/rank_layout.h"

namespace llmctl::runtime {
namespace {

using Clock = std::chrono::steady_clock;

double ms_between(Clock::time_point a, Clock::time_point b) {
  return std::chrono::duration<double, std::milli>(b - a).count();
}

/// Most resident bytes since the last call of restart_peak.
uint64_t peak_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::stoull(line.substr(6)) << 10;
  }
  return 0;
}

void restart_peak() { std::ofstream("/proc/self/clear_refs") << "5"; }

std::vector<GenerateRequest> make_requests(const BenchCase& what, int64_t vocab_size,
                                           uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<GenerateRequest> requests(static_cast<size_t>(what.batch_size));
  for (GenerateRequest& request : requests) {
    request.max_new_tokens = what.output_len;
    for (int64_t i = 0; i < what.input_len; ++i) {
      request.prompt_ids.push_back(
          static_cast<int32_t>(random() % static_cast<uint64_t>(vocab_size)));
    }
  }
  return requests;
}

double median(std::vector<double> values) { return percentiles(std::move(values)).p50; }

bool is_looked_up(const std::string& key, const ModelConfig& config) {
  if (key == "pos" || key == "pos_lead") return true;
  return (key == "embed" || key == "embed_narrow") && !config.tie_word_embeddings;
}

/// Biases of queries, keys and values have the axes of heads apart, and are vectors all the same.
bool is_vector(const std::string& key, const Shape& shape) {
  return shape.size() == 1 || key.ends_with("b");
}

}  // namespace

Percentiles percentiles(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const auto at = [&](double part) {
    const auto rank = static_cast<size_t>(std::ceil(part * static_cast<double>(values.size())));
    return values[std::clamp<size_t>(rank, 1, values.size()) - 1];
  };
  return {at(0.5), at(0.9), at(0.99)};
}

uint64_t bytes_per_pass(const reshard::Model& model, std::optional<DType> dtype,
                        const kernels::Quantization& quantization) {
  uint64_t bytes = 0;
  for (const std::string& key : model.keys()) {
    if (is_looked_up(key, model.config())) continue;
    const Shape shape = reshard::canonical_shape(reshard::Model::canonical_of(key), model.sizes());
    if (const int64_t columns = reshard::quantized_columns(key, model.config());
        quantization && columns > 0) {
      const auto rows = static_cast<uint64_t>(checked_num_elements(shape).value_or(0) / columns);
      bytes += rows * kernels::quantized_panel_bytes(quantization, columns) / kernels::kPanelRows;
      continue;
    }
    const reshard::SourcePiece& piece = model.pieces(key).front();
    const DType stored = model.checkpoint().tensors[static_cast<size_t>(piece.tensor)].dtype;
    bytes += static_cast<uint64_t>(checked_num_elements(shape).value_or(0)) *
             dtype_bytes(is_vector(key, shape) ? DType::F32
                                               : reshard::rank_dtype({1, 1}, stored, dtype));
  }
  return bytes;
}

double flops_per_token(const reshard::Model& model) {
  double elements = 0;
  for (const std::string& key : model.keys()) {
    if (is_looked_up(key, model.config())) continue;
    const Shape shape = reshard::canonical_shape(reshard::Model::canonical_of(key), model.sizes());
    if (!is_vector(key, shape))
      elements += static_cast<double>(checked_num_elements(shape).value_or(0));
  }
  return 2 * elements;
}

BenchRow measure_case(Engine& engine, const BenchCase& what, const BenchOptions& options,
                      uint64_t pass_bytes, BandwidthProbe& probe, ThreadPool& pool,
                      const std::function<void()>& progress) {
  BenchRow row;
  row.what = what;
  std::vector<double> first, gaps, ends, prefill, decode, memory, prefill_rate, decode_rate,
      pass_rate;
  restart_peak();
  for (int64_t round = -options.warmup; round < options.rounds; ++round) {
    throw_if_cancelled();
    if (progress) progress();
    // New prompts every time: none may be found in a cache of prefixes.
    const std::vector<GenerateRequest> requests =
        make_requests(what, engine.config().vocab_size,
                      options.seed * 1000003 + static_cast<uint64_t>(round + options.warmup));
    std::vector<std::vector<Clock::time_point>> times(requests.size());
    for (auto& list : times) list.reserve(static_cast<size_t>(what.output_len));
    const double before = probe.read_once(pool);
    const auto start = Clock::now();
    engine.generate(requests,
                    [&](size_t request, int32_t) { times[request].push_back(Clock::now()); });
    const double after = probe.read_once(pool);
    if (round < 0) continue;
    memory.push_back(before);
    memory.push_back(after);
    // Prefill ends with the first token of the last prompt. Some requests may be further by then.
    Clock::time_point prefilled = start, end = start;
    for (const auto& list : times) {
      prefilled = std::max(prefilled, list.front());
      end = std::max(end, list.back());
      first.push_back(ms_between(start, list.front()));
      ends.push_back(ms_between(start, list.back()));
      for (size_t i = 1; i < list.size(); ++i) gaps.push_back(ms_between(list[i - 1], list[i]));
    }
    int64_t decoded = 0, passes = 0;
    for (const auto& list : times) {
      const int64_t count = list.end() - std::upper_bound(list.begin(), list.end(), prefilled);
      decoded += count;
      passes = std::max(passes, count);
    }
    prefill.push_back(ms_between(start, prefilled));
    decode.push_back(ms_between(prefilled, end));
    prefill_rate.push_back(static_cast<double>(what.batch_size * what.input_len) * 1000 /
                           prefill.back());
    if (passes > 0) {
      decode_rate.push_back(static_cast<double>(decoded) * 1000 / decode.back());
      pass_rate.push_back(static_cast<double>(passes) * 1000 / decode.back());
    }
  }
  row.first_token_ms = percentiles(std::move(first));
  row.per_token_ms = percentiles(std::move(gaps));
  row.end_to_end_ms = percentiles(std::move(ends));
  row.prefill_ms = median(std::move(prefill));
  row.decode_ms = median(std::move(decode));
  row.prefill_tokens_per_second = median(std::move(prefill_rate));
  row.decode_tokens_per_second = median(std::move(decode_rate));
  row.memory_bytes_per_second = median(std::move(memory));
  // Every pass of decoding reads the weights once for the whole batch.
  row.decode_bytes_per_second = median(std::move(pass_rate)) * static_cast<double>(pass_bytes);
  const uint64_t peak = peak_bytes();
  row.peak_bytes = peak - std::min<uint64_t>(peak, probe.host_bytes());
  return row;
}

}  // namespace llmctl::runtime
