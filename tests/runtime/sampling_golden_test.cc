// Penalties, bans and warpers against those of transformers (tests/golden/sampling).
#include <doctest/doctest.h>

#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "runtime/logits_processor.h"
#include "runtime/sampler.h"
#include "tests/support/test_data.h"

using namespace llmctl;

TEST_CASE("sampling: keeps the tokens and probabilities of transformers") {
  const auto golden = nlohmann::json::parse(std::ifstream(test::golden("sampling/golden.json")));
  REQUIRE(golden.at("cases").size() > 40);
  for (const auto& c : golden.at("cases")) {
    const auto& options = c.at("options");
    CAPTURE(options.dump());
    const auto logits = c.at("logits").get<std::vector<float>>();
    const auto prompt = c.at("prompt").get<std::vector<int32_t>>();
    const auto generated = c.at("generated").get<std::vector<int32_t>>();
    const auto stops = c.at("stop_ids").get<std::vector<int64_t>>();
    runtime::LogitsRules rules;
    rules.repetition_penalty = options.value("repetition_penalty", 1.0);
    rules.min_new_tokens = options.value("min_new_tokens", int64_t{0});
    if (options.contains("bad_words")) {
      rules.bad_words = options.at("bad_words").get<std::vector<std::vector<int32_t>>>();
    }
    runtime::SamplingParams params;
    params.temperature = options.value("temperature", 1.0);
    params.top_k = options.value("top_k", int64_t{0});
    params.top_p = options.value("top_p", 1.0);
    params.min_p = options.value("min_p", 0.0);
    params.typical_p = options.value("typical_p", 1.0);

    const auto vocab = static_cast<int64_t>(logits.size());
    runtime::LogitsProcessor processor(vocab);
    runtime::Sampler sampler(vocab);
    const float* scores = processor.process(logits.data(), rules, prompt, generated, stops);
    std::map<int32_t, double> got;
    double total = 0;
    for (const auto& candidate : sampler.candidates(scores, params)) {
      if (candidate.weight > 0) got[candidate.id] = candidate.weight;
      total += candidate.weight;
    }
    std::map<int32_t, double> want;
    for (const auto& [id, p] : c.at("kept").items()) want[std::stoi(id)] = p.get<double>();
    REQUIRE(got.size() == want.size());
    for (const auto& [id, p] : want) {
      REQUIRE(got.count(id) == 1);
      CHECK(std::abs(got[id] / total - p) < 1e-6);
    }
  }
}

TEST_CASE("sampling: presence and frequency penalties are those of OpenAI") {
  // mu[j] - c[j] * frequency - (c[j] > 0) * presence, c over what was generated.
  const std::vector<float> logits = {1.0F, -2.0F, 3.0F, 0.5F};
  const std::vector<int32_t> prompt = {3, 3}, generated = {1, 2, 1};
  runtime::LogitsProcessor processor(4);
  runtime::LogitsRules rules;
  rules.presence_penalty = 0.25;
  rules.frequency_penalty = 0.5;
  const auto row = [&] {
    const float* scores = processor.process(logits.data(), rules, prompt, generated, {});
    return std::vector<float>(scores, scores + 4);
  };
  CHECK(row() == std::vector<float>{1.0F, -3.25F, 2.25F, 0.5F});
  CHECK(row() == std::vector<float>{1.0F, -3.25F, 2.25F, 0.5F});
  rules.repetition_penalty = 2;  // first, and over the prompt too
  CHECK(row() == std::vector<float>{1.0F, -5.25F, 0.75F, 0.25F});
  rules = {};
  CHECK(processor.process(logits.data(), rules, prompt, generated, {}) == logits.data());
}

TEST_CASE("sampling: rules that leave no token are an error") {
  runtime::LogitsProcessor processor(2);
  const float logits[] = {1.0F, 2.0F};
  runtime::LogitsRules rules;
  rules.bad_words = {{0}, {1}};
  CHECK_THROWS_WITH(processor.process(logits, rules, {}, {}, {}),
                    doctest::Contains("leave no token"));
}

TEST_CASE("sampling: log probabilities are those of the softmax and sorted") {
  const float logits[] = {0.0F, 2.0F, 1.0F, 2.0F};
  runtime::Sampler sampler(4);
  runtime::TokenLogprob top[3];
  const double sum = std::log(1 + 2 * std::exp(2.0) + std::exp(1.0));
  CHECK(sampler.logprobs(logits, 2, top) == doctest::Approx(1 - sum));
  CHECK(top[0].id == 1);
  CHECK(top[1].id == 3);
  CHECK(top[2].id == 2);
  CHECK(top[0].logprob == doctest::Approx(2 - sum));
  CHECK(top[2].logprob == doctest::Approx(1 - sum));
}
