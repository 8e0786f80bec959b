#include "cli/run_output.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "cli/output.h"

namespace llmctl::cli {

Printer::Printer(const runtime::Tokenizer* tokenizer, const std::vector<int32_t>& prompt_ids,
                 bool quiet)
    : quiet_(quiet) {
  if (tokenizer != nullptr) decoder_.emplace(*tokenizer, prompt_ids);
}

void Printer::push(int32_t id) {
  if (decoder_) {
    print(decoder_->push(id));
  } else {
    print((first_ ? "" : ",") + std::to_string(id));
  }
  first_ = false;
}

void Printer::finish() {
  if (decoder_) print(decoder_->finish());
  if (!quiet_) write_stdout("\n");
}

void Printer::print(const std::string& piece) {
  text_ += piece;
  if (!quiet_ && !piece.empty()) write_stdout(piece);
}

std::optional<double> Timings::tokens_per_second() const {
  if (decoded_tokens < 1 || decode_ms <= 0) return std::nullopt;
  return static_cast<double>(decoded_tokens) * 1000 / decode_ms;
}

void print_json(const std::vector<int32_t>& prompt_ids, const runtime::GenerateResult& result,
                const std::optional<std::string>& text, const Timings& timings) {
  nlohmann::ordered_json json;
  json["prompt_ids"] = prompt_ids;
  json["ids"] = result.ids;
  json["text"] = text ? nlohmann::ordered_json(*text) : nlohmann::ordered_json(nullptr);
  json["stop_reason"] = result.stop_reason == runtime::StopReason::kStopId ? "eos" : "length";
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

}  // namespace llmctl::cli
