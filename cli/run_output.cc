#include "cli/run_output.h"

#include <algorithm>
#include <cstdio>

#include "cli/output.h"

namespace llmctl::cli {
namespace {

bool contains(const std::vector<int64_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

const char* stop_reason(const runtime::GenerateResult& result,
                        const std::vector<int64_t>& eos_ids) {
  switch (result.stop_reason) {
    case runtime::StopReason::kLength:
      return "length";
    case runtime::StopReason::kStopId:
      return contains(eos_ids, result.ids.back()) ? "eos" : "stop";
    case runtime::StopReason::kStopString:
      return "stop";
    case runtime::StopReason::kInterrupted:
      return "interrupted";
  }
  return "";
}

}  // namespace

AnswerText::AnswerText(const runtime::Tokenizer* tokenizer, const runtime::GenerateRequest& request)
    : request_(request), stops_(request.stop_strings) {
  if (tokenizer != nullptr) decoder_.emplace(*tokenizer, request.prompt_ids);
}

std::string AnswerText::push(int32_t id) {
  std::string text;
  if (!decoder_) {
    text = (first_ ? "" : ",") + std::to_string(id);
    first_ = false;
  } else if (!contains(request_.stop_ids, id)) {
    stops_.push(decoder_->push(id), text);
  }
  return text;
}

std::string AnswerText::finish() {
  std::string text;
  if (decoder_) {
    stops_.push(decoder_->finish(), text);
    stops_.finish(text);
  }
  return text;
}

std::string answer_text(const runtime::Tokenizer* tokenizer,
                        const runtime::GenerateRequest& request, const std::vector<int32_t>& ids) {
  AnswerText answer(tokenizer, request);
  std::string text;
  for (const int32_t id : ids) text += answer.push(id);
  return text + answer.finish();
}

std::optional<double> Timings::tokens_per_second() const {
  if (decoded_tokens < 1 || decode_ms <= 0) return std::nullopt;
  return static_cast<double>(decoded_tokens) * 1000 / decode_ms;
}

Json answer_json(const runtime::Tokenizer* tokenizer, const runtime::GenerateRequest& request,
                 const runtime::GenerateResult& result, const std::vector<int64_t>& eos_ids) {
  Json json;
  json["ids"] = result.ids;
  json["text"] =
      tokenizer != nullptr ? Json(answer_text(tokenizer, request, result.ids)) : Json(nullptr);
  json["stop_reason"] = stop_reason(result, eos_ids);
  if (request.beams.num_beams > 1) json["score"] = result.score;
  if (request.num_logprobs < 0) return json;
  json["logprobs"] = result.logprobs;
  if (request.num_logprobs > 0) {
    Json& steps = json["top_logprobs"] = Json::array();
    const auto count = static_cast<size_t>(request.num_logprobs);
    for (size_t i = 0; i < result.top_logprobs.size(); ++i) {
      if (i % count == 0) steps.push_back(Json::array());
      const runtime::TokenLogprob& top = result.top_logprobs[i];
      steps.back().push_back({{"id", top.id}, {"logprob", top.logprob}});
    }
  }
  json["cumulative_logprob"] = result.cumulative_logprob;
  return json;
}

void print_answer_json(const runtime::Tokenizer* tokenizer, const runtime::GenerateRequest& request,
                       const runtime::GenerateResult& result, const std::vector<int64_t>& eos_ids,
                       const Timings& timings) {
  Json json;
  json["prompt_ids"] = request.prompt_ids;
  json.update(answer_json(tokenizer, request, result, eos_ids));
  if (!result.others.empty()) {
    Json& others = json["others"] = Json::array();
    for (const auto& other : result.others) {
      others.push_back(answer_json(tokenizer, request, other, eos_ids));
    }
  }
  auto& t = json["timings"];
  t["load_ms"] = timings.load_ms;
  t["prefill_ms"] = timings.prefill_ms;
  t["decode_ms"] = timings.decode_ms;
  const auto speed = timings.tokens_per_second();
  t["tokens_per_second"] = speed ? Json(*speed) : Json(nullptr);
  print_json(json);
}

void print_summary(const runtime::GenerateReport& report, const Timings& timings) {
  int64_t generated = 0;
  for (const auto& result : report.results) generated += static_cast<int64_t>(result.ids.size());
  char line[200];
  std::snprintf(line, sizeof line, "loaded in %.0f ms, %lld prompt tokens", timings.load_ms,
                static_cast<long long>(report.prompt_tokens));
  std::string text = line;
  if (report.reused_tokens > 0) text += " (" + std::to_string(report.reused_tokens) + " shared)";
  std::snprintf(line, sizeof line, " in %.0f ms, ", timings.prefill_ms);
  text += line + std::to_string(generated) + " generated";
  if (const auto speed = timings.tokens_per_second()) {
    std::snprintf(line, sizeof line, ", %.1f tokens/s", *speed);
    text += line;
  }
  print_note(text);
}

}  // namespace llmctl::cli
