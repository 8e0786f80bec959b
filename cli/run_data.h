// Prompts from a file of JSON lines, answers into another.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/json.h"
#include "cli/run_options.h"
#include "runtime/engine.h"
#include "runtime/tokenizer/tokenizer.h"

namespace llmctl::cli {

struct DataLine {
  Json input;
  runtime::GenerateRequest request;
};

/// Reads `--data-file`: a JSON object a line with the prompt in `src` (a text, or a list whose
/// first is taken), `prompt`, or `token_ids`, and its own values for options where it has them.
/// Throws kInvalidInput or kUsage naming file and line.
std::vector<DataLine> read_data_file(const std::string& path,
                                     const runtime::GenerateRequest& defaults,
                                     bool choose_max_new_tokens,
                                     const runtime::Tokenizer* tokenizer,
                                     const ModelConfig& config);

/// Generates the lines that `--output-file` (stdout when empty) does not hold yet and appends them
/// in order of the input: the input line with `output`, and more where asked for. Each line is
/// written at once. Throws kUsage when the file exists without --resume or --overwrite, or holds
/// answers to other lines.
runtime::GenerateReport run_data_file(runtime::Engine& engine, const std::vector<DataLine>& lines,
                                      const RunOptions& options,
                                      const runtime::Tokenizer* tokenizer,
                                      const std::vector<int64_t>& eos_ids);

/// FasterTransformer's `out`: for each prompt and each of its answers a line with the prompt's ids
/// and the generated ones, filled up with `end_id` to the longest prompt and max_new_tokens, a
/// blank after each.
std::string start_ids_output(const std::vector<runtime::GenerateRequest>& requests,
                             const runtime::GenerateReport& report, int64_t end_id);

/// Throws kUsage when --output-file exists and nothing allows to replace it.
void refuse_existing(const RunOptions& options);

/// Puts a file in place when it is complete.
void write_whole_file(const std::string& path, const std::string& text);

}  // namespace llmctl::cli
