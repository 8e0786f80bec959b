#include "cli/run_input.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "cli/output.h"
#include "formats/core/error.h"
#include "formats/json.h"
#include "runtime/parallel.h"

namespace llmctl::cli {
namespace {

namespace fs = std::filesystem;

/// Ids with commas and blanks between them; nothing when it is something else.
std::optional<std::vector<int32_t>> find_token_ids(const std::string& text) {
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
    if (error != std::errc() || id < 0) return std::nullopt;
    ids.push_back(id);
    at = stop;
    skip_blanks();
    if (at == end) return ids;
    if (*at++ != ',') return std::nullopt;
  }
}

/// The ways in which a tokenizer may write a word: at the start of a text, and after a blank.
void add_bad_word(std::vector<std::vector<int32_t>>& words, const runtime::Tokenizer& tokenizer,
                  const std::string& text) {
  if (text.empty()) throw_usage("--bad-words", "is empty");
  for (const std::string& spelling : {text, " " + text}) {
    auto ids = tokenizer.encode(spelling, false);
    if (!ids.empty() && std::find(words.begin(), words.end(), ids) == words.end()) {
      words.push_back(std::move(ids));
    }
  }
}

}  // namespace

std::optional<fs::path> find_tokenizer_directory(const formats::Checkpoint& checkpoint) {
  for (const fs::path& file : checkpoint.side_files) {
    const std::string name = file.filename().string();
    if (name == "tokenizer.json" || name == "tokenizer.model" || name == "vocab.json" ||
        name == "ice_text.model" || name.ends_with(".tiktoken")) {
      return file.has_parent_path() ? file.parent_path() : fs::path(".");
    }
  }
  return std::nullopt;
}

std::vector<int32_t> parse_token_ids(const std::string& flag, const std::string& text) {
  if (auto ids = find_token_ids(text)) return *std::move(ids);
  throw_usage(flag + " '" + printable(text, 40) + "'", "not a list of token ids",
              "write numbers with commas between them, as in " + flag + " 1,5,9");
}

std::unique_ptr<runtime::Tokenizer> open_model_tokenizer(const formats::Checkpoint& checkpoint,
                                                         const RunOptions& options) {
  try {
    std::unique_ptr<runtime::Tokenizer> tokenizer;
    if (const auto directory = find_tokenizer_directory(checkpoint)) {
      tokenizer = runtime::open_tokenizer(*directory);
    }
    if (!tokenizer && options.needs_tokenizer()) {
      if (options.chat) throw_usage("--chat", "the model has no tokenizer");
      const bool prompt = options.has_prompt || !options.prompt_file.empty();
      throw_usage(prompt                          ? "--prompt"
                  : options.decoding.stop.empty() ? "--bad-words"
                                                  : "--stop",
                  "the model has no tokenizer (tokenizer.json or tokenizer.model)",
                  "copy it into the model's directory, or give " +
                      std::string(prompt                          ? "--token-ids 1,5,9"
                                  : options.decoding.stop.empty() ? "--bad-word-ids 1,5,9"
                                                                  : "--stop-ids 1,5,9"));
    }
    return tokenizer;
  } catch (const Error& error) {
    if (options.needs_tokenizer()) throw;
    print_note(std::string("ids are printed, because the tokenizer cannot be used: ") +
               error.what());
    return nullptr;
  }
}

std::vector<int32_t> encode_prompt(const runtime::Tokenizer& tokenizer, const std::string& text) {
  auto ids = tokenizer.encode(text, true);
  if (ids.empty()) {
    throw_usage("--prompt", "the text has no tokens, and this model starts with none of its own",
                "give at least one character");
  }
  return ids;
}

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

runtime::GenerateRequest make_request(const DecodingFlags& flags,
                                      const runtime::Tokenizer* tokenizer,
                                      const std::vector<int64_t>& eos_ids) {
  runtime::GenerateRequest request;
  request.max_new_tokens = std::max<int64_t>(flags.max_new_tokens, 0);
  request.sampling.temperature = flags.temperature;
  request.sampling.top_k = flags.top_k;
  request.sampling.top_p = flags.top_p;
  request.sampling.min_p = flags.min_p;
  request.sampling.typical_p = flags.typical_p;
  request.sampling.seed = static_cast<uint64_t>(flags.seed);
  request.rules.repetition_penalty = flags.repetition_penalty;
  request.rules.presence_penalty = flags.presence_penalty;
  request.rules.frequency_penalty = flags.frequency_penalty;
  request.rules.min_new_tokens = flags.min_new_tokens;
  for (const std::string& ids : flags.bad_word_ids) {
    request.rules.bad_words.push_back(parse_token_ids("--bad-word-ids", ids));
  }
  for (const std::string& text : flags.bad_words) {
    add_bad_word(request.rules.bad_words, *tokenizer, text);
  }
  if (!flags.ignore_eos) request.stop_ids = eos_ids;
  if (!flags.stop_ids.empty()) {
    for (const int32_t id : parse_token_ids("--stop-ids", flags.stop_ids)) {
      request.stop_ids.push_back(id);
    }
  }
  request.stop_strings = flags.stop;
  request.num_logprobs = flags.logprobs;
  request.num_sequences = flags.num_return_sequences;
  request.beams.num_beams = flags.beams;
  request.beams.length_penalty = flags.length_penalty;
  request.beams.diversity = flags.beam_diversity;
  using runtime::EarlyStopping;
  request.beams.early_stopping = flags.early_stopping == "always"  ? EarlyStopping::kAlways
                                 : flags.early_stopping == "never" ? EarlyStopping::kNever
                                                                   : EarlyStopping::kHeuristic;
  if (flags.context_overflow == "slide") request.overflow = runtime::ContextOverflow::kSlide;
  return request;
}

runtime::GenerateRequest with_prompt(runtime::GenerateRequest request,
                                     std::vector<int32_t> prompt_ids, const ModelConfig& config,
                                     bool choose_max_new_tokens) {
  constexpr int64_t kDefaultNewTokens = 128;
  request.prompt_ids = std::move(prompt_ids);
  if (!choose_max_new_tokens) return request;
  const int64_t limit = runtime::context_limit(config);
  request.max_new_tokens = kDefaultNewTokens;
  if (limit == 0 || request.overflow == runtime::ContextOverflow::kSlide) return request;
  const int64_t room = limit - static_cast<int64_t>(request.prompt_ids.size()) + 1;
  request.max_new_tokens = std::max<int64_t>(1, std::min(kDefaultNewTokens, room));
  return request;
}

std::string read_text_file(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(stream)), {});
  if (!stream.is_open() || stream.bad() || fs::is_directory(path)) {
    throw Error(ErrorCode::kEnvironment, "cannot be read", path);
  }
  return text;
}

std::vector<std::vector<int32_t>> read_start_ids(const std::string& path) {
  std::istringstream stream(read_text_file(path));
  std::vector<std::vector<int32_t>> prompts;
  size_t number = 0;
  for (std::string line; std::getline(stream, line);) {
    ++number;
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty() && stream.peek() == EOF) break;
    auto ids = find_token_ids(line);
    if (!ids) {
      throw_invalid(path + ":" + std::to_string(number),
                    "'" + printable(line, 40) + "' is not a list of token ids",
                    "write a prompt a line, numbers with commas between them");
    }
    prompts.push_back(*std::move(ids));
  }
  if (prompts.empty()) throw_invalid(path, "holds no prompt", "");
  return prompts;
}

}  // namespace llmctl::cli
