// What `llmctl bench` has measured, and the ways of showing it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cli/json.h"
#include "runtime/bench.h"

namespace llmctl::cli {

struct BenchMachine {
  std::string cpu, isa;
  int cores = 0;
  uint64_t memory_bytes = 0;
};

/// The machine that this process runs on.
BenchMachine describe_machine();

struct BenchReport {
  std::string version;  ///< of llmctl
  std::string model, family, source, dtype;
  uint64_t num_parameters = 0, weight_bytes = 0, pass_bytes = 0;
  double flops_per_token = 0, load_ms = 0;
  int64_t tp = 1, pp = 1, threads = 1, warmup = 0, rounds = 0;
  BenchMachine machine;
  std::string device;  ///< the GPU that computed; empty: the CPU
  double memory_bytes_per_second = 0;
  double peak_flops = 0;           ///< 0: not measured (GPUs)
  std::string peak_dtype = "F32";  ///< of the products that peak_flops counts
  /// Whether the processor would do this model twice as fast with BF16 activations.
  bool could_round = false;
  std::vector<runtime::BenchRow> rows;
};

/// Lines about model and machine, and the table.
std::string bench_table(const BenchReport& report);
std::string bench_markdown(const BenchReport& report);
std::string bench_csv(const BenchReport& report);
Json bench_json(const BenchReport& report);
/// One page with charts and no parts elsewhere. cli/bench_html.cc.
std::string bench_html(const BenchReport& report);

/// A report that bench_json wrote. Throws kInvalidInput, naming `where`, for anything else.
BenchReport parse_bench(std::string_view text, const std::string& where);

/// The rows that both have, with the change from the first to the second. Throws kUsage when they
/// have no row in common.
std::string compare_benches(const BenchReport& first, const BenchReport& second);

/// `value` with so many digits behind the point.
std::string fixed(double value, int digits);

}  // namespace llmctl::cli
