#include "runtime/rope.h"

#include <doctest/doctest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "formats/core/error.h"
#include "tests/support/test_data.h"

using namespace llmctl;

namespace {

ModelConfig config_of(const nlohmann::json& c) {
  ModelConfig config;
  config.position = PositionKind::kRotary;
  config.head_dim = config.rotary_dim = c.at("head_dim").get<int64_t>();
  config.max_position_embeddings = c.at("max_position_embeddings").get<int64_t>();
  config.rope_theta = c.at("rope_theta").get<double>();
  const auto& s = c.at("rope_scaling");
  RopeScaling& scaling = config.rope_scaling;
  scaling.kind = s.at("rope_type").get<std::string>();
  const auto read = [&](const char* key, double& target) { target = s.value(key, target); };
  read("factor", scaling.factor);
  read("low_freq_factor", scaling.low_freq_factor);
  read("high_freq_factor", scaling.high_freq_factor);
  read("beta_fast", scaling.beta_fast);
  read("beta_slow", scaling.beta_slow);
  read("attention_factor", scaling.attention_factor);
  read("mscale", scaling.mscale);
  read("mscale_all_dim", scaling.mscale_all_dim);
  scaling.truncate = s.value("truncate", true);
  scaling.original_max_position_embeddings =
      s.value("original_max_position_embeddings", int64_t{0});
  scaling.short_factor = s.value("short_factor", std::vector<double>{});
  scaling.long_factor = s.value("long_factor", std::vector<double>{});
  return config;
}

}  // namespace

TEST_CASE("rope: frequencies and angles are those of transformers for every scaling kind") {
  const auto cases = nlohmann::json::parse(std::ifstream(test::golden("rope/rope.json")));
  REQUIRE(cases.size() > 15);
  for (const auto& c : cases) {
    const auto name = c.at("name").get<std::string>();
    const auto length = c.at("length").get<int64_t>();
    CAPTURE(name);
    CAPTURE(length);
    runtime::Rope rope(config_of(c));
    const auto want = c.at("inv_freq").get<std::vector<float>>();
    const std::vector<float> got = rope.frequencies(length);
    REQUIRE(got.size() == want.size());
    // torch's vectorised pow is within one unit in the last place of the rounded one.
    for (size_t i = 0; i < want.size(); ++i) {
      CAPTURE(i);
      CHECK(std::abs(got[i] - want[i]) <= 1.5e-7F * want[i]);
    }
    CHECK(rope.attention_scaling() ==
          doctest::Approx(c.at("attention_scaling").get<double>()).epsilon(1e-7));
    std::vector<float> cos(got.size());
    std::vector<float> sin(got.size());
    for (size_t r = 0; r < c.at("positions").size(); ++r) {
      rope.fill(cos.data(), sin.data(), c.at("positions")[r].get<int64_t>(), length);
      for (size_t i = 0; i < want.size(); ++i) {
        CHECK(std::abs(cos[i] - c.at("cos")[r][i].get<float>()) <= 1e-4F);
        CHECK(std::abs(sin[i] - c.at("sin")[r][i].get<float>()) <= 1e-4F);
      }
    }
  }
}

TEST_CASE("rope: a table in BF16 is that of torch and merges far positions") {
  const auto cases = nlohmann::json::parse(std::ifstream(test::golden("rope/bf16.json")));
  REQUIRE(cases.size() == 3);
  for (const auto& c : cases) {
    ModelConfig config;
    config.rotary_dim = c.at("head_dim").get<int64_t>();
    config.max_position_embeddings = 8192;
    config.rope_in_bf16 = true;
    CAPTURE(config.rotary_dim);
    runtime::Rope rope(config);
    const auto pairs = static_cast<size_t>(rope.num_pairs());
    std::vector<float> row(2 * pairs);
    for (size_t r = 0; r < c.at("positions").size(); ++r) {
      rope.fill(row.data(), row.data() + pairs, c.at("positions")[r].get<int64_t>(), 8192);
      auto want = c.at("cos")[r].get<std::vector<float>>();
      const auto sines = c.at("sin")[r].get<std::vector<float>>();
      want.insert(want.end(), sines.begin(), sines.end());
      CHECK(row == want);
    }
    std::set<std::vector<float>> distinct;
    for (int64_t p = 0; p < 8192; ++p) {
      rope.fill(row.data(), row.data() + pairs, p, 8192);
      distinct.insert(row);
      if (p == 4095) CHECK(distinct.size() == c.at("distinct_of_4096").get<size_t>());
    }
    CHECK(distinct.size() == c.at("distinct_of_8192").get<size_t>());

    // BF16 holds every integer up to 256 only; F32 tells all positions apart.
    std::vector<float> next = row;
    rope.fill(row.data(), row.data() + pairs, 256, 8192);
    rope.fill(next.data(), next.data() + pairs, 257, 8192);
    CHECK(row == next);
    config.rope_in_bf16 = false;
    runtime::Rope exact(config);
    exact.fill(row.data(), row.data() + pairs, 256, 8192);
    exact.fill(next.data(), next.data() + pairs, 257, 8192);
    CHECK(row != next);
  }
}

TEST_CASE("rope: a length that dynamic scaling saw before gives the same frequencies again") {
  ModelConfig config;
  config.rotary_dim = 8;
  config.max_position_embeddings = 16;
  config.rope_scaling.kind = "dynamic";
  config.rope_scaling.factor = 2;
  runtime::Rope rope(config);
  const std::vector<float> base = rope.frequencies(4);
  const std::vector<float> grown = rope.frequencies(20);
  CHECK(grown != base);
  CHECK(rope.frequencies(21) != grown);
  CHECK(rope.frequencies(16) == base);
  CHECK(rope.frequencies(20) == grown);
}

TEST_CASE("rope: refuses what it cannot compute") {
  ModelConfig config;
  config.rotary_dim = 8;
  config.max_position_embeddings = 16;
  config.rope_scaling.kind = "spiral";
  CHECK_THROWS_WITH_AS(runtime::Rope{config}, doctest::Contains("unknown kind 'spiral'"), Error);
  config.rope_scaling.kind = "longrope";
  config.rope_scaling.short_factor = {1, 1, 1};
  config.rope_scaling.long_factor = {1, 1, 1, 1};
  CHECK_THROWS_WITH_AS(runtime::Rope{config},
                       doctest::Contains("needs 4 short and long factors, has 3 and 4"), Error);
}
