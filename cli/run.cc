// llmctl run: load a checkpoint onto a grid of ranks and generate.
#include <charconv>
#include <chrono>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/npy.h"
#include "cli/output.h"
#include "cli/size.h"
#include "formats/json.h"
#include "reshard/model.h"
#include "runtime/engine.h"
#include "runtime/parallel.h"
#include "runtime/tokenizer/tokenizer.h"

namespace llmctl::cli {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr int64_t kDefaultNewTokens = 128;
constexpr std::string_view kDTypes[] = {"fp32", "fp16", "bf16"};
constexpr std::string_view kRopePrecisions[] = {"megatron_bf16", "fp32"};

struct RunOptions {
  std::string model;
  SourceFlags about_source;
  std::string prompt, token_ids;
  bool has_prompt = false, has_token_ids = false;
  int64_t tp = 1, pp = 1, threads = 0;
  int64_t max_new_tokens = -1;  ///< -1: kDefaultNewTokens, or what fits
  double temperature = 0, top_p = 1;
  int64_t top_k = 0, seed = 0;
  std::string dtype, rope_precision;
  bool ignore_eos = false, json = false;
  std::string logits_file;
};

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

/// "1,5,9" with blanks around the numbers allowed.
std::vector<int32_t> parse_token_ids(const std::string& text) {
  std::vector<int32_t> ids;
  const char* at = text.data();
  const char* const end = at + text.size();
  const auto skip_blanks = [&] {
    while (at < end && *at == ' ') ++at;
  };
  for (;;) {
    skip_blanks();
    int32_t id = 0;
    const auto [stop, error] = std::from_chars(at, end, id);
    if (error != std::errc() || id < 0) break;
    ids.push_back(id);
    at = stop;
    skip_blanks();
    if (at == end) return ids;
    if (*at++ != ',') break;
  }
  throw_usage("--token-ids '" + printable(text, 40) + "'", "not a list of token ids",
              "write numbers with commas between them, as in --token-ids 1,5,9");
}

/// The folder of the model's tokenizer files; nothing when it has none.
std::optional<fs::path> find_tokenizer_directory(const formats::Checkpoint& checkpoint) {
  for (const fs::path& file : checkpoint.side_files) {
    const std::string name = file.filename().string();
    if (name == "tokenizer.json" || name == "tokenizer.model" || name == "vocab.json") {
      return file.has_parent_path() ? file.parent_path() : fs::path(".");
    }
  }
  return std::nullopt;
}

/// Ids alone need no tokenizer, so one that cannot be opened is then no reason to stop.
std::unique_ptr<runtime::Tokenizer> open_model_tokenizer(const formats::Checkpoint& checkpoint,
                                                         const RunOptions& options) {
  try {
    std::unique_ptr<runtime::Tokenizer> tokenizer;
    if (const auto directory = find_tokenizer_directory(checkpoint)) {
      tokenizer = runtime::open_tokenizer(*directory);
    }
    if (!tokenizer && options.has_prompt) {
      throw_usage("--prompt", "the model has no tokenizer (tokenizer.json or tokenizer.model)",
                  "copy it into the model's directory, or give --token-ids 1,5,9");
    }
    return tokenizer;
  } catch (const Error& error) {
    if (options.has_prompt) throw;
    print_note(std::string("ids are printed, because the tokenizer cannot be used: ") +
               error.what());
    return nullptr;
  }
}

/// generation_config.json has priority over the model's own configuration; either may be a list.
std::vector<int64_t> find_stop_ids(const reshard::Model& model) {
  const auto& texts = model.checkpoint().texts;
  const char* name = "generation_config.json";
  if (const auto found = texts.find(name); found != texts.end()) {
    const auto json = formats::parse_json(found->second, name);
    if (json.is_object() && json.contains("eos_token_id") && !json["eos_token_id"].is_null()) {
      std::vector<int64_t> ids;
      const auto& value = json["eos_token_id"];
      if (!value.is_array()) return {formats::get_size(value, name, "eos_token_id")};
      for (const auto& item : value) ids.push_back(formats::get_size(item, name, "eos_token_id"));
      return ids;
    }
  }
  return model.config().eos_token_ids;
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

/// Prints tokens as they come: text when there is a tokenizer, else ids with commas.
class Printer {
 public:
  Printer(const runtime::Tokenizer* tokenizer, const std::vector<int32_t>& prompt_ids, bool quiet)
      : quiet_(quiet) {
    if (tokenizer != nullptr) decoder_.emplace(*tokenizer, prompt_ids);
  }

  void push(int32_t id) {
    if (decoder_) {
      print(decoder_->push(id));
    } else {
      print((first_ ? "" : ",") + std::to_string(id));
    }
    first_ = false;
  }
  void finish() {
    if (decoder_) print(decoder_->finish());
    if (!quiet_) write_stdout("\n");
  }
  const std::string& text() const { return text_; }

 private:
  void print(const std::string& piece) {
    text_ += piece;
    if (!quiet_ && !piece.empty()) write_stdout(piece);
  }

  bool quiet_, first_ = true;
  std::optional<runtime::StreamDecoder> decoder_;
  std::string text_;
};

struct Timings {
  double load_ms = 0, prefill_ms = 0, decode_ms = 0;
  int64_t decoded_tokens = 0;

  /// Of the decode phase; nothing when it had no token.
  std::optional<double> tokens_per_second() const {
    if (decoded_tokens < 1 || decode_ms <= 0) return std::nullopt;
    return static_cast<double>(decoded_tokens) * 1000 / decode_ms;
  }
};

void print_json(const std::vector<int32_t>& prompt_ids, const runtime::GenerateResult& result,
                const std::optional<std::string>& text, const Timings& timings) {
  nlohmann::ordered_json json;
  json["prompt_ids"] = prompt_ids;
  json["ids"] = result.ids;
  json["text"] = text ? nlohmann::ordered_json(*text) : nlohmann::ordered_json(nullptr);
  json["stop_reason"] = result.stopped ? "eos" : "length";
  auto& t = json["timings"];
  t["load_ms"] = timings.load_ms;
  t["prefill_ms"] = timings.prefill_ms;
  t["decode_ms"] = timings.decode_ms;
  const auto speed = timings.tokens_per_second();
  t["tokens_per_second"] = speed ? nlohmann::ordered_json(*speed) : nlohmann::ordered_json(nullptr);
  write_stdout(json.dump(2) + "\n");
}

void print_summary(const runtime::GenerateReport& report, const Timings& timings) {
  char line[200];
  std::snprintf(line, sizeof line, "loaded in %.0f ms, %lld prompt tokens in %.0f ms, ",
                timings.load_ms, static_cast<long long>(report.prompt_tokens), timings.prefill_ms);
  std::string text = line + std::to_string(report.results[0].ids.size()) + " generated";
  if (const auto speed = timings.tokens_per_second()) {
    std::snprintf(line, sizeof line, ", %.1f tokens/s", *speed);
    text += line;
  }
  print_note(text);
}

ExitCode run_run(const RunOptions& options) {
  if (options.has_prompt == options.has_token_ids) {
    throw_usage("llmctl run", "give either --prompt TEXT or --token-ids 1,5,9");
  }
  std::vector<int32_t> ids;
  if (!options.has_prompt) ids = parse_token_ids(options.token_ids);
  runtime::EngineOptions engine_options;
  engine_options.tp = static_cast<int>(options.tp);
  engine_options.pp = static_cast<int>(options.pp);
  engine_options.threads = static_cast<int>(options.threads);
  if (!options.dtype.empty()) engine_options.dtype = find_dtype(options.dtype);

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
    ids = tokenizer->encode(options.prompt, true);
    if (ids.empty()) {
      throw_usage("--prompt", "the text has no tokens, and this model starts with none of its own",
                  "give at least one character");
    }
  }
  runtime::GenerateRequest request;
  request.prompt_ids = ids;
  request.sampling = {options.temperature, options.top_k, options.top_p,
                      static_cast<uint64_t>(options.seed)};
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
