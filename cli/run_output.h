// What `llmctl run` prints: tokens as they come, and the summary.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/request.h"
#include "runtime/tokenizer/tokenizer.h"

namespace llmctl::cli {

/// Prints tokens as they come: text when there is a tokenizer, else ids with commas.
class Printer {
 public:
  Printer(const runtime::Tokenizer* tokenizer, const std::vector<int32_t>& prompt_ids, bool quiet);

  void push(int32_t id);
  void finish();
  const std::string& text() const { return text_; }

 private:
  void print(const std::string& piece);

  bool quiet_, first_ = true;
  std::optional<runtime::StreamDecoder> decoder_;
  std::string text_;
};

struct Timings {
  double load_ms = 0, prefill_ms = 0, decode_ms = 0;
  int64_t decoded_tokens = 0;

  /// Of the decode phase; nothing when it had no token.
  std::optional<double> tokens_per_second() const;
};

/// One JSON object with prompt, ids, text and timings.
void print_json(const std::vector<int32_t>& prompt_ids, const runtime::GenerateResult& result,
                const std::optional<std::string>& text, const Timings& timings);

/// One line for the terminal.
void print_summary(const runtime::GenerateReport& report, const Timings& timings);

}  // namespace llmctl::cli
