// llmctl run: load a checkpoint onto a grid of ranks and generate.
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/activations.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/npy.h"
#include "cli/output.h"
#include "cli/processes.h"
#include "cli/run_chat.h"
#include "cli/run_data.h"
#include "cli/run_input.h"
#include "cli/run_interactive.h"
#include "cli/run_options.h"
#include "cli/run_output.h"
#include "cli/run_ranks.h"
#include "reshard/model.h"
#include "reshard/target.h"
#include "runtime/engine.h"
#include "runtime/parallel.h"

namespace llmctl::cli {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kDefaultBatchSize = 16;
constexpr int64_t kSessionTokens = 8192;
constexpr std::string_view kDTypes[] = {"fp32", "fp16", "bf16"};
constexpr std::string_view kRopePrecisions[] = {"megatron_bf16", "fp32"};

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
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

/// A run after its model has been loaded.
struct LoadedRun {
  const RunOptions& options;
  runtime::Engine& engine;
  const runtime::Tokenizer* tokenizer;      ///< may be null
  const runtime::GenerateRequest& request;  ///< but for the prompt
  std::vector<int64_t> eos_ids;
  double load_ms = 0;

  bool choose_max_new_tokens() const { return options.decoding.max_new_tokens < 0; }
  runtime::GenerateRequest with(std::vector<int32_t> prompt_ids) const {
    return with_prompt(request, std::move(prompt_ids), engine.config(), choose_max_new_tokens());
  }
  void summarize(const runtime::GenerateReport& report) const {
    if (is_terminal(2)) print_summary(report, timings(report));
  }
  Timings timings(const runtime::GenerateReport& report) const {
    return {load_ms, report.prefill_ms, report.decode_ms, report.decoded_tokens};
  }
};

void answer_prompt(const LoadedRun& run, const runtime::GenerateRequest& request) {
  if (!run.options.logits_file.empty()) {
    write_logits(run.engine, request.prompt_ids, run.options.logits_file);
  }
  if (request.max_new_tokens == 0 && !run.options.json) return;
  AnswerText answer(run.tokenizer, request);
  runtime::GenerateCallbacks callbacks;
  if (!run.options.json) {
    callbacks.on_token = [&](size_t, int32_t id) {
      if (const std::string text = answer.push(id); !text.empty()) write_stdout(text);
    };
  }
  const runtime::GenerateReport report = run.engine.generate({&request, 1}, callbacks);
  const runtime::GenerateResult& result = report.results[0];
  if (run.options.json) {
    return print_answer_json(run.tokenizer, request, result, run.eos_ids, run.timings(report));
  }
  if (request.width() == 1) {
    write_stdout(answer.finish() + "\n");
  } else {
    write_stdout(answer_text(run.tokenizer, request, result.ids) + "\n");
    for (const auto& other : result.others) {
      write_stdout(answer_text(run.tokenizer, request, other.ids) + "\n");
    }
  }
  run.summarize(report);
}

void answer_start_ids(const LoadedRun& run) {
  refuse_existing(run.options);
  std::vector<runtime::GenerateRequest> requests;
  for (auto& ids : read_start_ids(run.options.start_ids)) {
    requests.push_back(run.with(std::move(ids)));
  }
  const runtime::GenerateReport report = run.engine.generate(requests);
  const int64_t end_id = run.request.stop_ids.empty() ? 0 : run.request.stop_ids.front();
  const std::string text = start_ids_output(requests, report, end_id);
  if (run.options.output_file.empty()) {
    write_stdout(text);
  } else {
    write_whole_file(run.options.output_file, text);
  }
  run.summarize(report);
}

/// Whether prompts come from a terminal. Throws kUsage for none and for more than one source.
bool is_interactive(const RunOptions& options) {
  const int sources = int{options.has_prompt} + int{options.has_token_ids} +
                      int{!options.prompt_file.empty()} + int{!options.data_file.empty()} +
                      int{!options.start_ids.empty()} + int{!options.messages.empty()};
  const bool interactive = sources == 0 && is_terminal(0);
  if (sources > 1 || (sources == 0 && !interactive)) {
    throw_usage("llmctl run",
                "give one of --prompt TEXT, --prompt-file, --messages, --token-ids 1,5,9, "
                "--data-file and --start-ids");
  }
  const auto need = [&](bool used, const char* flag, bool fits, const char* where) {
    if (used && !fits) throw_usage(flag, std::string("goes with ") + where + " only");
  };
  const bool data = !options.data_file.empty();
  const bool single = sources == 1 && !data && options.start_ids.empty();
  need(!options.messages.empty(), "--messages", options.chat, "--chat");
  need(!options.system.empty(), "--system", options.chat, "--chat");
  need(!options.chat_template.empty(), "--chat-template", options.chat, "--chat");
  need(options.chat, "--chat", interactive || (single && !options.has_token_ids),
       "--prompt, --prompt-file, --messages or a session");
  need(!options.output_file.empty(), "--output-file", data || !options.start_ids.empty(),
       "--data-file or --start-ids");
  need(options.resume, "--resume", data && !options.output_file.empty(),
       "--data-file and --output-file");
  need(options.overwrite, "--overwrite", !options.output_file.empty(), "--output-file");
  if (options.resume && options.overwrite) throw_usage("--resume", "excludes --overwrite");
  need(!options.logits_file.empty(), "--logits-file", single, "a single prompt");
  need(options.decoding.logprobs >= 0, "--logprobs", data || (single && options.json),
       "--json or --data-file");
  need(options.json, "--json", data || single, "a prompt or --data-file");
  need(options.decoding.num_return_sequences > 1 || options.decoding.beams > 1,
       "--num-return-sequences and --beams", !interactive, "prompts that are given by a flag");
  return interactive;
}

/// With a link: on each of its processes. All but rank 0's read no prompts and print nothing.
ExitCode run_run(const RunOptions& options, runtime::ProcessLink* link) {
  const bool leads = link == nullptr || link->rank() == 0;
  // Only rank 0 can have a terminal.
  std::string session = leads && is_interactive(options) ? "session" : "";
  if (link != nullptr) session = link->broadcast(session);
  const bool interactive = !session.empty();
  std::vector<int32_t> ids;
  if (options.has_token_ids) ids = parse_token_ids("--token-ids", options.token_ids);
  runtime::EngineOptions engine_options;
  engine_options.tp = static_cast<int>(options.tp);
  engine_options.pp = static_cast<int>(options.pp);
  engine_options.threads = static_cast<int>(options.threads);
  options.device.apply(engine_options, link != nullptr);
  engine_options.batch.batch_size = options.batch_size > 0 ? options.batch_size : kDefaultBatchSize;
  engine_options.batch.kv_memory = options.kv_memory;
  if (!options.dtype.empty()) engine_options.dtype = find_dtype(options.dtype);
  engine_options.quantization = options.quantization.resolve();
  if (!options.kv_dtype.empty()) engine_options.kv_dtype = find_dtype(options.kv_dtype).value();

  const auto start = Clock::now();
  reshard::OpenOptions open_options;
  open_options.family_file = options.about_source.family_file;
  open_options.settings = options.about_source.settings();
  const reshard::Model model = reshard::open_model(options.model, open_options);
  for (const std::string& note : model.notes()) {
    if (leads) print_note(note);
  }
  engine_options.activations = find_activations(
      options.activation_dtype, engine_options.dtype.value_or(reshard::main_dtype(model)),
      engine_options.device);
  if (!options.rope_precision.empty()) {
    if (model.config().position != PositionKind::kRotary) {
      throw_usage("--rope-precision", "this model has no rotary positions", "leave it out");
    }
    engine_options.rope_in_bf16 = options.rope_precision == "megatron_bf16";
  }
  const auto tokenizer = open_model_tokenizer(model.checkpoint(), options);
  if (interactive && !tokenizer) {
    throw_usage("llmctl run", "a session needs the model's tokenizer, and there is none");
  }
  const std::vector<int64_t> eos_ids = find_stop_ids(model);
  const runtime::GenerateRequest request = make_request(options.decoding, tokenizer.get(), eos_ids);
  engine_options.batch.tokenizer = tokenizer.get();

  std::optional<Chat> chat;
  if (options.chat && leads) chat.emplace(model.checkpoint(), *tokenizer, options);
  const auto encode = [&](const std::string& text) {
    return chat ? chat->encode_turn(text) : encode_prompt(*tokenizer, text);
  };

  // What can be refused is refused before the weights are read.
  const bool choose = options.decoding.max_new_tokens < 0;
  std::vector<DataLine> lines;
  runtime::GenerateRequest single;
  if (interactive) {
    // Turns find the turns before as long as all of them fit.
    const int64_t limit = runtime::context_limit(model.config());
    engine_options.batch.kv_tokens = limit > 0 ? std::min(limit, kSessionTokens) : kSessionTokens;
  } else if (!leads) {
    // Requests come from rank 0.
  } else if (!options.data_file.empty()) {
    lines = read_data_file(options.data_file, request, choose, tokenizer.get(), model.config());
  } else if (options.start_ids.empty()) {
    if (options.has_prompt) ids = encode(options.prompt);
    if (!options.prompt_file.empty()) ids = encode(read_text_file(options.prompt_file));
    if (!options.messages.empty()) ids = chat->encode_file(options.messages);
    single = with_prompt(request, ids, model.config(), choose);
    runtime::check_request(single, model.config());
  }

  // A rank reads one copy of what several hold: they had better be equal.
  if (leads) reshard::check_replicas(model);
  auto ranks = make_ranks(link, options, engine_options);
  runtime::Engine engine(model, engine_options, std::move(ranks));
  if (!leads) {
    engine.follow();
    return ExitCode::kDone;
  }
  const LoadedRun run{options, engine, tokenizer.get(), request, eos_ids, ms_since(start)};
  if (interactive) {
    run_interactive(engine, *tokenizer, request, choose,
                    chat ? chat->session_prompts() : plain_prompts(*tokenizer));
  } else if (!options.data_file.empty()) {
    run.summarize(run_data_file(engine, lines, options, tokenizer.get(), eos_ids));
  } else if (!options.start_ids.empty()) {
    answer_start_ids(run);
  } else {
    answer_prompt(run, single);
  }
  return ExitCode::kDone;
}

}  // namespace

Run add_run(CLI::App& verb) {
  const auto options = std::make_shared<RunOptions>();
  add_path(verb, "MODEL", options->model, "Checkpoint directory or file, in any format and layout");
  CLI::Option* prompt = verb.add_option("--prompt", options->prompt, "Text to continue");
  prompt->type_name("TEXT");
  CLI::Option* token_ids = verb.add_option("--token-ids", options->token_ids,
                                           "Token ids to continue, in place of a text");
  token_ids->type_name("IDS");
  add_path(verb, "--prompt-file", options->prompt_file, "Continue the text in this file");
  verb.add_flag("--chat", options->chat,
                "Prompts are turns of a conversation, in the model's own chat template");
  verb.add_option("--system", options->system, "What the system says first, with --chat")
      ->type_name("TEXT");
  add_path(verb, "--messages", options->messages,
           "Continue the conversation in this JSON file, with --chat");
  add_path(verb, "--chat-template", options->chat_template,
           "The Jinja template for --chat [the model's own]");
  add_path(verb, "--data-file", options->data_file,
           "Continue each line's src, prompt or token_ids of this file of JSON lines");
  add_path(verb, "--start-ids", options->start_ids,
           "Continue each line's ids of this start_ids.csv of FasterTransformer");
  add_path(verb, "--output-file", options->output_file,
           "Write the answers to --data-file or --start-ids here [stdout]");
  verb.add_flag("--resume", options->resume,
                "Go on behind the answers that --output-file holds already");
  verb.add_flag("--overwrite", options->overwrite, "Replace --output-file when it exists");
  options->decoding.add(verb);
  add_integer(verb, "--batch-size", options->batch_size, 1, 1 << 16, "B",
              "Sequences computed side by side, at most [16]");
  add_size(verb, "--kv-memory", options->kv_memory,
           "Memory for keys and values of all ranks, at most [half of what is free]");
  add_integer(verb, "--tp,--tensor-parallel-size", options->tp, 1, 1 << 16, "T",
              "Split each layer over T ranks [1]");
  add_integer(verb, "--pp,--pipeline-parallel-size", options->pp, 1, 1 << 16, "P",
              "Split the layers into P stages [1]");
  options->device.add(verb);
  add_choice(verb, "--dtype", options->dtype, kDTypes,
             "Hold the matrices in this dtype [as stored]");
  options->quantization.add(verb);
  add_choice(verb, "--kv-dtype", options->kv_dtype, kDTypes,
             "Hold keys and values in this dtype [fp32; on GPUs that of the matrices]");
  add_activation_dtype(verb, options->activation_dtype);
  add_choice(verb, "--rope-precision", options->rope_precision, kRopePrecisions,
             "Round rotary angles as Megatron does in BF16, or not [as the model was trained]");
  add_integer(verb, "--threads", options->threads, 0, 4096, "N",
              "CPU threads of all ranks together [the cores there are]");
  verb.add_flag(
      "--json", options->json,
      "Print one JSON object with ids, text and timings when done; with --data-file, more in "
      "each line");
  add_path(verb, "--logits-file", options->logits_file,
           "Write the F32 logits of every prompt position, (tokens, vocab), as .npy");
  options->about_source.add(verb);
  static constexpr std::string_view kExamples[] = {
      "run ./llama --prompt 'Once upon a time'",
      "run ./llama --tp 2 --pp 2 --prompt 'Once upon a time' -n 64 --temperature 0.8 --seed 1",
      "run ./qwen --chat --system 'Be brief.' --prompt 'What is a prime?'",
      "run ./gpt-ft/2-gpu --token-ids 1,5,9 --json",
      "run ./llama --device cuda --dtype fp16 --prompt 'Once upon a time'",
      "run ./llama --data-file in.jsonl --output-file out.jsonl --batch-size 8",
      "run ./llama --token-ids 1,5,9 -n 0 --logits-file logits.npy",
  };
  set_examples(verb, kExamples);
  verb.footer(
      verb.get_footer() +
      "\n\nRanks as processes: mpirun -n 4 llmctl run ./llama --tp 2 --pp 2 --prompt Hello");
  return [options, prompt, token_ids] {
    options->has_prompt = prompt->count() > 0;
    options->has_token_ids = token_ids->count() > 0;
    return share_work([&](runtime::ProcessLink* link) { return run_run(*options, link); });
  };
}

}  // namespace llmctl::cli
