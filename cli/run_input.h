// Where `llmctl run` gets its prompts, and the tokenizer that they need.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cli/run_options.h"
#include "reshard/model.h"
#include "runtime/tokenizer/tokenizer.h"

namespace llmctl::cli {

/// "1,5,9" with blanks around the numbers allowed. Throws kUsage naming `flag` for anything else.
std::vector<int32_t> parse_token_ids(const std::string& flag, const std::string& text);

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

}  // namespace llmctl::cli
