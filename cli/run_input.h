// Where `llmctl run` gets its prompts, and the tokenizer that they need.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/run_options.h"
#include "reshard/model.h"
#include "runtime/request.h"
#include "runtime/tokenizer/tokenizer.h"

namespace llmctl::cli {

/// "1,5,9" with blanks around the numbers allowed. Throws kUsage naming `flag` for anything else.
std::vector<int32_t> parse_token_ids(const std::string& flag, const std::string& text);

/// The folder of the model's tokenizer files; nothing when it has none.
std::optional<std::filesystem::path> find_tokenizer_directory(
    const formats::Checkpoint& checkpoint);

/// The model's tokenizer; null when it has none and nothing asks for one. Ids alone need no
/// tokenizer, so one that cannot be opened is then no reason to stop.
std::unique_ptr<runtime::Tokenizer> open_model_tokenizer(const formats::Checkpoint& checkpoint,
                                                         const RunOptions& options);

/// The ids of a text prompt, with the model's own frame around them. Throws kUsage when there are
/// none.
std::vector<int32_t> encode_prompt(const runtime::Tokenizer& tokenizer, const std::string& text);

/// eos_token_id of generation_config.json, else of the model's own configuration; either may be a
/// list.
std::vector<int64_t> find_stop_ids(const reshard::Model& model);

/// What is the same for all prompts: everything but prompt_ids. Texts are encoded with `tokenizer`,
/// which may be null when there are none. Throws kUsage naming the flag.
runtime::GenerateRequest make_request(const DecodingFlags& flags,
                                      const runtime::Tokenizer* tokenizer,
                                      const std::vector<int64_t>& eos_ids);

/// Fills in the prompt, and max_new_tokens when no flag said it.
runtime::GenerateRequest with_prompt(runtime::GenerateRequest request,
                                     std::vector<int32_t> prompt_ids, const ModelConfig& config,
                                     bool choose_max_new_tokens);

/// The whole of a file. Throws kEnvironment.
std::string read_text_file(const std::string& path);

/// FasterTransformer's start_ids.csv: a prompt a line, ids with commas and blanks between them.
/// Throws kInvalidInput naming the line.
std::vector<std::vector<int32_t>> read_start_ids(const std::string& path);

}  // namespace llmctl::cli
