// llmctl run: load a checkpoint onto a grid of ranks and generate.
#include <chrono>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/npy.h"
#include "cli/output.h"
#include "cli/run_input.h"
#include "cli/run_options.h"
#include "cli/run_output.h"
#include "reshard/model.h"
#include "runtime/engine.h"
#include "runtime/parallel.h"

namespace llmctl::cli {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kDefaultNewTokens = 128;
constexpr std::string_view kDTypes[] = {"fp32", "fp16", "bf16"};
constexpr std::string_view kRopePrecisions[] = {"megatron_bf16", "fp32"};

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

int64_t choose_max_new_tokens(const RunOptions& options, const ModelConfig& config,
                              size_t prompt_size) {
  if (options.max_new_tokens >= 0) return options.max_new_tokens;
  const int64_t limit = runtime::context_limit(config);
  if (limit == 0) return kDefaultNewTokens;
  const int64_t room = limit - static_cast<int64_t>(prompt_size) + 1;
  return std::max<int64_t>(1, std::min(kDefaultNewTokens, room));
}

void write_logits(runtime::Engine& engine, const std::vector<int32_t>& ids,
                  const std::string& path) {
  const int64_t vocab = engine.config().vocab_size;
  NpyWriter writer(path, static_cast<int64_t>(ids.size()), vocab);
  engine.prompt_logits(ids, [&](int64_t, int64_t rows, const float* logits) {
    writer.append({logits, static_cast<size_t>(rows * vocab)});
  });
  writer.commit();
}

ExitCode run_run(const RunOptions& options) {
  if (options.has_prompt == options.has_token_ids) {
    throw_usage("llmctl run", "give either --prompt TEXT or --token-ids 1,5,9");
  }
  std::vector<int32_t> ids;
  if (!options.has_prompt) ids = parse_token_ids("--token-ids", options.token_ids);
  runtime::EngineOptions engine_options;
  engine_options.tp = static_cast<int>(options.tp);
  engine_options.pp = static_cast<int>(options.pp);
  engine_options.threads = static_cast<int>(options.threads);
  if (!options.dtype.empty()) engine_options.dtype = find_dtype(options.dtype);
  if (!options.kv_dtype.empty()) engine_options.kv_dtype = find_dtype(options.kv_dtype).value();

  const auto start = Clock::now();
  reshard::OpenOptions open_options;
  open_options.family_file = options.about_source.family_file;
  open_options.settings = options.about_source.settings();
  const reshard::Model model = reshard::open_model(options.model, open_options);
  for (const std::string& note : model.notes()) print_note(note);
  if (!options.rope_precision.empty()) {
    if (model.config().position != PositionKind::kRotary) {
      throw_usage("--rope-precision", "this model has no rotary positions", "leave it out");
    }
    engine_options.rope_in_bf16 = options.rope_precision == "megatron_bf16";
  }
  const auto tokenizer = open_model_tokenizer(model.checkpoint(), options);
  if (options.has_prompt) {
    ids = encode_prompt(*tokenizer, options.prompt);
  }
  runtime::GenerateRequest request;
  request.prompt_ids = ids;
  request.sampling.temperature = options.temperature;
  request.sampling.top_k = options.top_k;
  request.sampling.top_p = options.top_p;
  request.sampling.seed = static_cast<uint64_t>(options.seed);
  if (!options.ignore_eos) request.stop_ids = find_stop_ids(model);
  request.max_new_tokens = choose_max_new_tokens(options, model.config(), ids.size());
  runtime::check_request(request, model.config());

  runtime::Engine engine(model, engine_options);
  Timings timings;
  timings.load_ms = ms_since(start);

  if (!options.logits_file.empty()) write_logits(engine, ids, options.logits_file);
  if (request.max_new_tokens == 0) return ExitCode::kDone;

  Printer printer(tokenizer.get(), ids, options.json);
  const runtime::GenerateReport report =
      engine.generate({&request, 1}, [&](size_t, int32_t id) { printer.push(id); });
  printer.finish();
  timings.prefill_ms = report.prefill_ms;
  timings.decode_ms = report.decode_ms;
  timings.decoded_tokens = report.decoded_tokens;
  if (options.json) {
    print_json(ids, report.results[0], tokenizer ? std::optional(printer.text()) : std::nullopt,
               timings);
  } else if (is_terminal(2)) {
    print_summary(report, timings);
  }
  return ExitCode::kDone;
}

}  // namespace

Run add_run(CLI::App& verb) {
  const auto options = std::make_shared<RunOptions>();
  constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  add_path(verb, "MODEL", options->model, "Checkpoint directory or file, in any format and layout");
  CLI::Option* prompt = verb.add_option("--prompt", options->prompt, "Text to continue");
  prompt->type_name("TEXT");
  CLI::Option* token_ids = verb.add_option("--token-ids", options->token_ids,
                                           "Token ids to continue, in place of a text");
  token_ids->type_name("IDS");
  add_integer(verb, "-n,--max-new-tokens", options->max_new_tokens, 0, kMaxInt, "N",
              "Generate at most N tokens [128, or what fits the model's positions]");
  add_integer(verb, "--tp,--tensor-parallel-size", options->tp, 1, 1 << 16, "T",
              "Split each layer over T ranks [1]");
  add_integer(verb, "--pp,--pipeline-parallel-size", options->pp, 1, 1 << 16, "P",
              "Split the layers into P stages [1]");
  add_choice(verb, "--dtype", options->dtype, kDTypes,
             "Hold the matrices in this dtype [as stored]");
  add_choice(verb, "--kv-dtype", options->kv_dtype, kDTypes,
             "Hold keys and values in this dtype [fp32]");
  add_choice(verb, "--rope-precision", options->rope_precision, kRopePrecisions,
             "Round rotary angles as Megatron does in BF16, or not [as the model was trained]");
  add_integer(verb, "--threads", options->threads, 0, 4096, "N",
              "CPU threads of all ranks together [the cores there are]");
  add_real(verb, "--temperature", options->temperature, 0, 1e6, "X",
           "0 takes the likeliest token; above, tokens are drawn at this temperature [0]");
  add_integer(verb, "--top-k", options->top_k, 0, kMaxInt, "K",
              "Draw from the K likeliest only; 0: from all [0]");
  add_real(verb, "--top-p", options->top_p, 0, 1, "P",
           "Draw from the fewest tokens whose mass reaches P [1]");
  add_integer(verb, "--seed", options->seed, 0, kMax, "N", "Seed of the draws [0]");
  verb.add_flag("--ignore-eos", options->ignore_eos, "Go on after the end-of-text token");
  verb.add_flag("--json", options->json,
                "Print one JSON object with ids, text and timings when done");
  add_path(verb, "--logits-file", options->logits_file,
           "Write the F32 logits of every prompt position, (tokens, vocab), as .npy");
  options->about_source.add(verb);
  static constexpr std::string_view kExamples[] = {
      "run ./llama --prompt 'Once upon a time'",
      "run ./llama --tp 2 --pp 2 --prompt 'Once upon a time' -n 64 --temperature 0.8 --seed 1",
      "run ./gpt-ft/2-gpu --token-ids 1,5,9 --json",
      "run ./llama --token-ids 1,5,9 -n 0 --logits-file logits.npy",
  };
  set_examples(verb, kExamples);
  return [options, prompt, token_ids] {
    options->has_prompt = prompt->count() > 0;
    options->has_token_ids = token_ids->count() > 0;
    return run_run(*options);
  };
}

}  // namespace llmctl::cli
