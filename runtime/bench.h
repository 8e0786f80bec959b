// Latency and throughput of a model, measured through the engine.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "reshard/model.h"
#include "runtime/engine.h"
#include "runtime/memory_probe.h"

namespace llmctl::runtime {

/// What one row of the table measures.
struct BenchCase {
  int64_t batch_size = 1, input_len = 128, output_len = 8;
};

struct BenchOptions {
  int64_t warmup = 1, rounds = 5;
  uint64_t seed = 0;  ///< of the prompts, which are random ids; no two are alike
};

/// Of values measured several times.
struct Percentiles {
  double p50 = 0, p90 = 0, p99 = 0;
};
/// By nearest rank; zeros for no values.
Percentiles percentiles(std::vector<double> values);

struct BenchRow {
  BenchCase what;
  Percentiles first_token_ms;            ///< from the start of a round to a request's first token
  Percentiles per_token_ms;              ///< between two tokens of a request
  Percentiles end_to_end_ms;             ///< from the start of a round to a request's last token
  double prefill_ms = 0, decode_ms = 0;  ///< medians over the rounds
  double prefill_tokens_per_second = 0, decode_tokens_per_second = 0;
  /// Weights that decoding has read per second, and what the same threads read in the same rounds.
  double decode_bytes_per_second = 0, memory_bytes_per_second = 0;
  uint64_t peak_bytes = 0;  ///< most resident memory during the row, without the probe's

  double memory_fraction() const {
    return memory_bytes_per_second > 0 ? decode_bytes_per_second / memory_bytes_per_second : 0;
  }
};

/// Bytes of weights that one decoding pass reads: every matrix once, of a separate embedding only
/// rows. `dtype`: EngineOptions::dtype; `quantization`: as choose_quantization gives it.
uint64_t bytes_per_pass(const reshard::Model& model, std::optional<DType> dtype,
                        const kernels::Quantization& quantization = {});
/// Multiply-adds that one token takes, times two: attention is not counted.
double flops_per_token(const reshard::Model& model);

/// Throws what Engine::generate throws, before running for a case beyond the model's positions.
/// `progress` is called before every round; may be empty.
BenchRow measure_case(Engine& engine, const BenchCase& what, const BenchOptions& options,
                      uint64_t pass_bytes, BandwidthProbe& probe, ThreadPool& pool,
                      const std::function<void()>& progress = {});

}  // namespace llmctl::runtime
