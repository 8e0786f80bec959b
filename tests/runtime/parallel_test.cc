#include "runtime/parallel.h"

#include <doctest/doctest.h>

#include <tuple>
#include <vector>

#include "formats/core/error.h"

using namespace llmctl;

namespace {
ModelConfig llama_like() {
  ModelConfig config;
  config.num_attention_heads = 32;
  config.num_key_value_heads = 8;
  config.intermediate_size = 96;
  config.num_hidden_layers = 7;
  return config;
}
}  // namespace

TEST_CASE("parallel: a size that does not divide is refused with the sizes that do") {
  const ModelConfig config = llama_like();
  for (const int tp : {1, 2, 4, 8, 16, 32})
    CHECK_NOTHROW(runtime::check_parallel_sizes(config, tp, 1));
  CHECK_THROWS_WITH_AS(runtime::check_parallel_sizes(config, 6, 1),
                       "--tp 6: num_key_value_heads is 8, which 6 does not divide; "
                       "use 1, 2, 4, 8, 16 or 32",
                       Error);
  ModelConfig equal = config;
  equal.num_attention_heads = equal.num_key_value_heads = 7;
  CHECK_THROWS_WITH_AS(runtime::check_parallel_sizes(equal, 2, 1),
                       doctest::Contains("num_attention_heads is 7"), Error);
  ModelConfig odd = config;
  odd.intermediate_size = 99;
  CHECK_THROWS_WITH_AS(runtime::check_parallel_sizes(odd, 2, 1),
                       "--tp 2: intermediate_size is 99, which 2 does not divide; use 1", Error);
  CHECK_THROWS_WITH_AS(runtime::check_parallel_sizes(config, 64, 1),
                       doctest::Contains("num_attention_heads is 32"), Error);
  CHECK_THROWS_WITH_AS(runtime::check_parallel_sizes(config, 1, 8),
                       doctest::Contains("the model has only 7 layers"), Error);
  CHECK_THROWS_WITH_AS(runtime::check_parallel_sizes(config, 0, 1), doctest::Contains("--tp 0"),
                       Error);
}

TEST_CASE("parallel: layers spread evenly with the odd ones in the first stages") {
  const ModelConfig config = llama_like();
  std::vector<std::tuple<int64_t, int64_t>> blocks;
  for (int stage = 0; stage < 3; ++stage) {
    for (int t = 0; t < 2; ++t) {
      const auto place = runtime::place_of_rank(config, 2, 3, stage * 2 + t);
      CHECK(place.rank() == stage * 2 + t);
      CHECK(place.tp_rank == t);
      CHECK(place.pp_rank == stage);
      CHECK(place.is_first_stage() == (stage == 0));
      CHECK(place.is_last_stage() == (stage == 2));
      if (t == 0) blocks.emplace_back(place.first_layer, place.end_layer);
    }
  }
  CHECK(blocks == std::vector<std::tuple<int64_t, int64_t>>{{0, 3}, {3, 5}, {5, 7}});
}

TEST_CASE("parallel: kv heads are shared once there are more ranks than heads") {
  const ModelConfig config = llama_like();
  CHECK(runtime::local_num_key_value_heads(config, 2) == 4);
  CHECK(runtime::local_num_key_value_heads(config, 8) == 1);
  CHECK(runtime::local_num_key_value_heads(config, 32) == 1);
}

TEST_CASE("parallel: the context limit follows the kind of positions") {
  ModelConfig config = llama_like();
  config.max_position_embeddings = 100;
  config.position = PositionKind::kLearned;
  CHECK(runtime::context_limit(config) == 100);
  config.position = PositionKind::kAlibi;
  CHECK(runtime::context_limit(config) == 0);
  config.position = PositionKind::kRotary;
  CHECK(runtime::context_limit(config) == 100);
  config.rope_scaling.kind = "dynamic";
  config.rope_scaling.factor = 2.5;
  CHECK(runtime::context_limit(config) == 250);
  config.rope_scaling.kind = "yarn";
  config.rope_scaling.original_max_position_embeddings = 25;
  CHECK(runtime::context_limit(config) == 100);
  config.rope_scaling.original_max_position_embeddings = 50;
  CHECK(runtime::context_limit(config) == 125);
}
