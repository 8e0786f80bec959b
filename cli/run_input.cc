#include "cli/run_input.h"

#include <charconv>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/output.h"
#include "formats/core/error.h"
#include "formats/json.h"

namespace llmctl::cli {
namespace {

namespace fs = std::filesystem;

/// The folder of the model's tokenizer files; nothing when it has none.
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

}  // namespace

std::vector<int32_t> parse_token_ids(const std::string& flag, const std::string& text) {
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

}  // namespace llmctl::cli
