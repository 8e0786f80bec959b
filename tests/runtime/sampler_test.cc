#include "runtime/sampler.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "formats/core/error.h"

using namespace llmctl;
using runtime::Sampler;
using runtime::SamplingParams;

TEST_CASE("sampler: philox gives the published known answers") {
  // Random123's kat_vectors, philox4x32 10.
  using Words = std::array<uint32_t, 4>;
  CHECK(runtime::philox({0, 0, 0, 0}, {0, 0}) ==
        Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(runtime::philox({~0U, ~0U, ~0U, ~0U}, {~0U, ~0U}) ==
        Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(
      runtime::philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
      Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("sampler: greedy takes the lowest of equal logits") {
  Sampler sampler(5);
  const float logits[] = {0.5F, 2.0F, -1.0F, 2.0F, 1.0F};
  CHECK(sampler.sample(logits, {}, 0) == 1);
  CHECK(sampler.sample(logits, {.temperature = 0.7, .top_k = 1}, 3) == 1);
}

TEST_CASE("sampler: frequencies follow the softmax at the temperature") {
  const float logits[] = {0.0F, 1.0F, 2.0F, -std::numeric_limits<float>::infinity()};
  Sampler sampler(4);
  for (const double temperature : {0.5, 1.0, 3.0}) {
    CAPTURE(temperature);
    int counts[4] = {};
    const int draws = 20000;
    for (int i = 0; i < draws; ++i) {
      ++counts[sampler.sample(logits, {.temperature = temperature, .seed = 7}, i)];
    }
    double total = 0;
    for (int i = 0; i < 3; ++i) total += std::exp(i / temperature);
    for (int i = 0; i < 3; ++i) {
      CHECK(counts[i] / double{draws} ==
            doctest::Approx(std::exp(i / temperature) / total).epsilon(0.05));
    }
    CHECK(counts[3] == 0);
  }
}

TEST_CASE("sampler: top-k keeps the k likeliest and of equals the lowest ids") {
  const float logits[] = {1.0F, 3.0F, 1.0F, 3.0F, 1.0F, 0.0F};
  Sampler sampler(6);
  std::array<int, 6> counts{};
  for (int i = 0; i < 2000; ++i) {
    ++counts[static_cast<size_t>(
        sampler.sample(logits, {.temperature = 5.0, .top_k = 3, .seed = 1}, i))];
  }
  CHECK(counts[0] > 0);
  CHECK(counts[1] > 0);
  CHECK(counts[3] > 0);
  CHECK(counts[2] + counts[4] + counts[5] == 0);
}

TEST_CASE("sampler: top-p keeps the fewest tokens that reach the mass") {
  // Probabilities 0.5, 0.25, 0.125, 0.125.
  const float logits[] = {std::log(0.125F), std::log(0.5F), std::log(0.25F), std::log(0.125F)};
  Sampler sampler(4);
  const auto seen = [&](double top_p) {
    std::array<bool, 4> result{};
    for (int i = 0; i < 3000; ++i) {
      result[static_cast<size_t>(
          sampler.sample(logits, {.temperature = 1.0, .top_p = top_p, .seed = 2}, i))] = true;
    }
    return result;
  };
  CHECK(seen(0.4) == std::array{false, true, false, false});
  CHECK(seen(0.6) == std::array{false, true, true, false});
  CHECK(seen(0.8) == std::array{true, true, true, false});
  CHECK(seen(1.0) == std::array{true, true, true, true});
}

TEST_CASE("sampler: top-p over a vocabulary larger than the sorted head keeps the whole mass") {
  // 2000 equal tokens: 90 % of the mass is the first 1800, far beyond the first block that is
  // sorted.
  Sampler sampler(2000);
  const std::vector<float> logits(2000, 1.5F);
  int32_t highest = 0;
  for (int i = 0; i < 3000; ++i) {
    const int32_t id =
        sampler.sample(logits.data(), {.temperature = 1.0, .top_p = 0.9, .seed = 3}, i);
    REQUIRE(id < 1801);
    highest = std::max(highest, id);
  }
  CHECK(highest > 1750);
}

TEST_CASE("sampler: a draw depends on seed and position alone") {
  std::vector<float> logits(300);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(i % 17) * 0.1F;
  const SamplingParams params{.temperature = 1.0, .top_p = 0.95, .seed = 99};
  Sampler a(300);
  Sampler b(300);
  std::vector<int32_t> forward;
  for (int64_t p = 0; p < 50; ++p) forward.push_back(a.sample(logits.data(), params, p));
  for (int64_t p = 50; p-- > 0;) {
    CHECK(b.sample(logits.data(), params, p) == forward[static_cast<size_t>(p)]);
  }
  SamplingParams other = params;
  other.seed = 100;
  int differing = 0;
  for (int64_t p = 0; p < 50; ++p) {
    differing += a.sample(logits.data(), other, p) != forward[static_cast<size_t>(p)];
  }
  CHECK(differing > 25);
}

TEST_CASE("sampler: refuses logits that are not finite") {
  Sampler sampler(3);
  const float nan[] = {1.0F, NAN, 0.0F};
  const float infinite[] = {1.0F, INFINITY, 0.0F};
  const float none[] = {-INFINITY, -INFINITY, -INFINITY};
  for (const float* logits : {nan, infinite, none}) {
    CHECK_THROWS_WITH_AS(sampler.sample(logits, {}, 4),
                         doctest::Contains("position 4: the model's logits are not finite"), Error);
  }
}

TEST_CASE("sampler: refuses parameters out of range naming the flag") {
  CHECK_NOTHROW(runtime::check_sampling({}));
  CHECK_THROWS_WITH_AS(runtime::check_sampling({.temperature = -1}),
                       doctest::Contains("--temperature"), Error);
  CHECK_THROWS_WITH_AS(runtime::check_sampling({.top_k = -1}), doctest::Contains("--top-k"), Error);
  CHECK_THROWS_WITH_AS(runtime::check_sampling({.top_p = 0}), doctest::Contains("--top-p"), Error);
  CHECK_THROWS_WITH_AS(runtime::check_sampling({.top_p = NAN}), doctest::Contains("--top-p"),
                       Error);
}
