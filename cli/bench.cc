#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "cli/activations.h"
#include "cli/bench_report.h"
#include "cli/commands.h"
#include "cli/device.h"
#include "cli/flags.h"
#include "cli/output.h"
#include "formats/core/error.h"
#include "formats/core/file.h"
#include "formats/core/thread_pool.h"
#include "kernels/isa.h"
#include "reshard/geometries.h"
#include "reshard/manifest.h"
#include "reshard/model.h"
#include "reshard/quantization.h"
#include "reshard/target.h"
#include "runtime/bench.h"
#include "runtime/cuda/back_end.h"

namespace llmctl::cli {
namespace {

using Clock = std::chrono::steady_clock;

struct BenchFlags {
  std::string model, geometry, dtype, kv_dtype, activation_dtype, format = "table", html;
  std::string batch_sizes = "1,2,4,8,16", input_lens = "128", output_lens = "8";
  std::vector<std::string> compare;
  int64_t tp = 1, pp = 1, threads = 0, warmup = 1, rounds = 5, seed = 0;
  QuantizationFlags quantization;
  SourceFlags about_source;
  DeviceFlags device;
  bool json = false;
};

constexpr std::array<std::string_view, 3> kDTypes = {"fp32", "fp16", "bf16"};
constexpr std::array<std::string_view, 4> kFormats = {"table", "markdown", "json", "csv"};

/// "1,2,4": numbers from `least` on.
std::vector<int64_t> parse_list(const std::string& flag, const std::string& text, int64_t least) {
  std::vector<int64_t> numbers;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    int64_t number = 0;
    const auto result = std::from_chars(text.data() + begin, text.data() + end, number);
    if (result.ec != std::errc() || result.ptr != text.data() + end || number < least ||
        number > 1 << 20) {
      throw_usage(flag + " " + printable(text, 60),
                  "must be whole numbers from " + std::to_string(least) + " on with commas between",
                  "for example " + flag + " 1,2,4");
    }
    numbers.push_back(number);
    begin = end + 1;
  }
  return numbers;
}

std::vector<std::string_view> geometry_names() {
  std::vector<std::string_view> names;
  for (const reshard::ModelGeometry& geometry : reshard::geometry_table()) {
    names.push_back(geometry.name);
  }
  return names;
}

reshard::Model open_benched(const BenchFlags& flags) {
  if (flags.geometry.empty()) {
    return reshard::open_model(flags.model, {.family_file = flags.about_source.family_file,
                                             .settings = flags.about_source.settings()});
  }
  const reshard::ModelGeometry& geometry = *reshard::find_geometry(flags.geometry);
  const reshard::Family& family = *reshard::find_family_by_name(geometry.family);
  const ModelConfig config = reshard::make_config(family, &geometry, flags.about_source.set);
  const DType dtype = flags.dtype.empty() ? geometry.dtype : *find_dtype(flags.dtype);
  return reshard::describe_model(family, config, dtype, "seed " + std::to_string(flags.seed));
}

void draw_round(uint64_t round, uint64_t total) {
  write_stderr("\rmeasuring: round " + std::to_string(round) + " of " + std::to_string(total) +
               "\033[K");
}

BenchReport measure(const BenchFlags& flags, const std::vector<runtime::BenchCase>& cases) {
  const reshard::Model model = open_benched(flags);
  for (const std::string& note : model.notes()) print_note(note);
  runtime::EngineOptions options;
  options.tp = static_cast<int>(flags.tp);
  options.pp = static_cast<int>(flags.pp);
  options.threads = static_cast<int>(flags.threads);
  flags.device.apply(options, false);
  const bool on_gpu = options.device == runtime::Device::kCuda;
  if (!flags.dtype.empty()) options.dtype = find_dtype(flags.dtype);
  if (!flags.kv_dtype.empty()) options.kv_dtype = find_dtype(flags.kv_dtype).value();
  const DType held = options.dtype.value_or(reshard::main_dtype(model));
  options.activations = find_activations(flags.activation_dtype, held, options.device);
  options.quantization = reshard::choose_quantization(model, flags.quantization.resolve());
  for (const runtime::BenchCase& what : cases) {
    runtime::GenerateRequest request;
    request.prompt_ids.assign(static_cast<size_t>(what.input_len), 0);
    request.max_new_tokens = what.output_len;
    runtime::check_request(request, model.config());
  }
  options.batch.reuse_prefixes = false;
  for (const runtime::BenchCase& what : cases) {
    const int64_t tokens = what.batch_size * (what.input_len + what.output_len);
    options.batch.kv_tokens = std::max(options.batch.kv_tokens, tokens);
  }
  const auto start = Clock::now();
  runtime::Engine engine(model, options);

  BenchReport report;
  report.load_ms = std::chrono::duration<double, std::milli>(Clock::now() - start).count();
  report.version = reshard::llmctl_version();
  report.model = flags.geometry.empty() ? printable(flags.model, 4000) : flags.geometry;
  report.source = flags.geometry.empty() ? model.checkpoint().format : "random weights";
  report.family = model.config().family;
  report.dtype = dtype_name(held);
  if (options.activations == kernels::Activations::kBF16) {
    report.dtype += " with BF16 activations";
  } else {
    report.could_round = held == DType::BF16 && kernels::has_bf16_products();
  }
  if (*options.quantization) report.dtype = reshard::quantization_text(*options.quantization);
  report.num_parameters = reshard::count_parameters(model);
  report.weight_bytes = engine.weight_bytes();
  report.pass_bytes = runtime::bytes_per_pass(model, options.dtype, *options.quantization);
  report.flops_per_token = runtime::flops_per_token(model);
  report.tp = flags.tp;
  report.pp = flags.pp;
  report.threads = flags.threads > 0 ? flags.threads : available_cores();
  report.warmup = flags.warmup;
  report.rounds = flags.rounds;
  report.machine = describe_machine();

  ThreadPool pool(static_cast<int>(report.threads));
  std::unique_ptr<runtime::BandwidthProbe> probe;
  if (on_gpu) {
    report.device = runtime::cuda::device_name();
    probe = runtime::cuda::make_probe(
        runtime::cuda::place_ranks(options.tp * options.pp, options.share_device));
  }
  // Larger than any cache, and little beside the memory there is.
  const uint64_t probe_bytes =
      std::clamp<uint64_t>(report.machine.memory_bytes / 16, uint64_t{64} << 20, uint64_t{1} << 30);
  if (!on_gpu) probe = std::make_unique<runtime::MemoryProbe>(static_cast<size_t>(probe_bytes));
  runtime::BenchOptions bench;
  bench.warmup = flags.warmup;
  bench.rounds = flags.rounds;
  bench.seed = static_cast<uint64_t>(flags.seed);
  const auto total =
      static_cast<uint64_t>(cases.size()) * static_cast<uint64_t>(flags.warmup + flags.rounds);
  uint64_t done = 0;
  const bool talks = is_terminal(2);
  std::vector<double> memory;
  for (const runtime::BenchCase& what : cases) {
    report.rows.push_back(
        runtime::measure_case(engine, what, bench, report.pass_bytes, *probe, pool, [&] {
          if (talks) draw_round(++done, total);
        }));
    memory.push_back(report.rows.back().memory_bytes_per_second);
    if (!on_gpu) report.peak_flops = std::max(report.peak_flops, runtime::measure_flops(pool));
  }
  if (talks) write_stderr("\r\033[K");
  if (!on_gpu && options.activations == kernels::Activations::kBF16 &&
      kernels::has_bf16_products()) {
    report.peak_flops *= 2;
    report.peak_dtype = "BF16";
  }
  report.memory_bytes_per_second = runtime::percentiles(std::move(memory)).p50;
  return report;
}

void write_page(const std::string& path, const std::string& page) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << page;
  out.flush();
  if (!out) throw_errno("--html " + path, "cannot write");
}

ExitCode run_compare(const BenchFlags& flags) {
  if (!flags.model.empty() || !flags.geometry.empty()) {
    throw_usage("--compare", "compares two results and measures nothing", "leave the model out");
  }
  constexpr uint64_t kMaxBytes = uint64_t{64} << 20;
  const auto read = [](const std::string& path) {
    return parse_bench(read_text_file(path, kMaxBytes), path);
  };
  write_stdout(compare_benches(read(flags.compare[0]), read(flags.compare[1])));
  return ExitCode::kDone;
}

ExitCode run_bench(const BenchFlags& flags) {
  if (!flags.compare.empty()) return run_compare(flags);
  if (flags.model.empty() == flags.geometry.empty()) {
    throw_usage("llmctl bench", "give either a model or --geometry NAME",
                "for example llmctl bench --geometry gpt-345m");
  }
  std::vector<runtime::BenchCase> cases;
  for (const int64_t input : parse_list("--input-len", flags.input_lens, 1)) {
    for (const int64_t output : parse_list("--output-len", flags.output_lens, 1)) {
      for (const int64_t batch : parse_list("--batch-size", flags.batch_sizes, 1)) {
        cases.push_back({batch, input, output});
      }
    }
  }
  const BenchReport report = measure(flags, cases);
  if (!flags.html.empty()) write_page(flags.html, bench_html(report));
  if (flags.json || flags.format == "json") {
    print_json(bench_json(report));
  } else if (flags.format == "csv") {
    write_stdout(bench_csv(report));
  } else {
    write_stdout(flags.format == "markdown" ? bench_markdown(report) : bench_table(report));
  }
  return ExitCode::kDone;
}

}  // namespace

Run add_bench(CLI::App& verb) {
  const auto flags = std::make_shared<BenchFlags>();
  verb.add_option("MODEL", flags->model, "Checkpoint or export, in any format and layout")
      ->type_name("");
  add_choice(verb, "--geometry", flags->geometry, geometry_names(),
             "Measure random weights of this published model's sizes, made in memory");
  verb.add_option("--batch-size", flags->batch_sizes,
                  "Requests that run together (default 1,2,4,8,16)")
      ->type_name("N,N,...");
  verb.add_option("--input-len", flags->input_lens, "Tokens of each prompt (default 128)")
      ->type_name("N,N,...");
  verb.add_option("--output-len", flags->output_lens, "Tokens to generate (default 8)")
      ->type_name("N,N,...");
  flags->device.add(verb);
  add_choice(verb, "--dtype", flags->dtype, kDTypes,
             "Hold the matrices in this dtype (default: as stored)");
  add_choice(verb, "--kv-dtype", flags->kv_dtype, kDTypes,
             "Hold keys and values in this dtype (default fp32)");
  add_activation_dtype(verb, flags->activation_dtype);
  flags->quantization.add(verb);
  add_integer(verb, "--tp,--tensor-parallel-size", flags->tp, 1, 1 << 16, "T",
              "Split each layer over T ranks (default 1)");
  add_integer(verb, "--pp,--pipeline-parallel-size", flags->pp, 1, 1 << 16, "P",
              "Split the layers into P stages (default 1)");
  add_integer(verb, "--threads", flags->threads, 0, 4096, "N",
              "CPU threads of all ranks together (default: the cores there are)");
  add_integer(verb, "--warmup", flags->warmup, 0, 1000, "N",
              "Rounds of each row before those that count (default 1)");
  add_integer(verb, "--rounds", flags->rounds, 1, 100000, "N",
              "Rounds of each row that count (default 5)");
  add_integer(verb, "--seed", flags->seed, 0, int64_t{1} << 62, "N",
              "Seed of prompts and random weights (default 0)");
  add_choice(verb, "--format", flags->format, kFormats, "How to print the result");
  verb.add_flag("--json", flags->json, "The same as --format json");
  add_path(verb, "--html", flags->html, "Also write a page with charts to this file");
  verb.add_option("--compare", flags->compare,
                  "Compare two results that --json has printed, and measure nothing")
      ->type_name("PATH")
      ->expected(2);
  flags->about_source.add(verb);
  static constexpr std::array<std::string_view, 5> kExamples = {
      "bench ./llama-run", "bench --geometry gpt-345m --format markdown",
      "bench --geometry llama-1b --dtype bf16 --batch-size 1,8 --input-len 128,512 --output-len 32",
      "bench ./llama --json --html llama.html > before.json",
      "bench --compare before.json after.json"};
  set_examples(verb, kExamples);
  return [flags] { return run_bench(*flags); };
}

}  // namespace llmctl::cli
