// What `llmctl run` prints: tokens as they come, answers as JSON, and the summary.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/json.h"
#include "runtime/request.h"
#include "runtime/stop_strings.h"
#include "runtime/tokenizer/tokenizer.h"

namespace llmctl::cli {

/// The text of an answer, or its ids with commas when there is no tokenizer, as it grows. Stop ids
/// and what follows the beginning of a stop string do not show. Must not outlive the request and
/// the tokenizer.
class AnswerText {
 public:
  AnswerText(const runtime::Tokenizer* tokenizer, const runtime::GenerateRequest& request);

  /// What became certain with `id`.
  std::string push(int32_t id);
  /// The rest, once no more ids come.
  std::string finish();

 private:
  const runtime::GenerateRequest& request_;
  std::optional<runtime::StreamDecoder> decoder_;
  runtime::StopStrings stops_;
  bool first_ = true;
};

/// The whole text of an answer.
std::string answer_text(const runtime::Tokenizer* tokenizer,
                        const runtime::GenerateRequest& request, const std::vector<int32_t>& ids);

struct Timings {
  double load_ms = 0, prefill_ms = 0, decode_ms = 0;
  int64_t decoded_tokens = 0;

  /// Of the decode phase; nothing when it had no token.
  std::optional<double> tokens_per_second() const;
};

/// `ids`, `text` (null without a tokenizer), `stop_reason`, and what the request asked for:
/// `logprobs`, `top_logprobs`, `cumulative_logprob`, `score`. `eos_ids` tell `eos` from `stop`.
Json answer_json(const runtime::Tokenizer* tokenizer, const runtime::GenerateRequest& request,
                 const runtime::GenerateResult& result, const std::vector<int64_t>& eos_ids);

/// One JSON object with prompt, answer, other answers and timings.
void print_answer_json(const runtime::Tokenizer* tokenizer, const runtime::GenerateRequest& request,
                       const runtime::GenerateResult& result, const std::vector<int64_t>& eos_ids,
                       const Timings& timings);

/// One line for the terminal.
void print_summary(const runtime::GenerateReport& report, const Timings& timings);

}  // namespace llmctl::cli
