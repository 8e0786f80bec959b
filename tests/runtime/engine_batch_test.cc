// Batches: continuous, over pipeline stages, in little memory, with shared prefixes. Whatever the
// scheduler does, greedy F32 output keeps its bits.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "formats/core/error.h"
#include "reshard/model.h"
#include "runtime/engine.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"

using namespace llmctl;
using runtime::Engine;
using runtime::EngineOptions;
using runtime::GenerateRequest;
using runtime::StopReason;

namespace {

reshard::Model open_family(const std::string& name) {
  return reshard::open_model(test::golden("families/" + name));
}

EngineOptions grid(int tp, int pp) {
  EngineOptions options;
  options.tp = tp;
  options.pp = pp;
  options.threads = 1;
  options.page_size = 4;
  return options;
}

GenerateRequest greedy(std::vector<int32_t> prompt, int64_t tokens) {
  GenerateRequest request;
  request.prompt_ids = std::move(prompt);
  request.max_new_tokens = tokens;
  return request;
}

std::vector<int32_t> ids_of(Engine& engine, const GenerateRequest& request) {
  return engine.generate({&request, 1}).results.at(0).ids;
}

/// Of different lengths, some beginning alike.
std::vector<GenerateRequest> mixed_requests(size_t count) {
  std::vector<GenerateRequest> requests;
  for (size_t i = 0; i < count; ++i) {
    std::vector<int32_t> prompt = {7, 3, 9, 11, 5, 2, 8, 4, 6, 10, 12, 1, 13, 5};
    prompt.resize(1 + i * 5 % prompt.size());
    prompt.push_back(static_cast<int32_t>(20 + i % 3));
    requests.push_back(greedy(prompt, static_cast<int64_t>(1 + i * 7 % 13)));
  }
  return requests;
}

/// Each request alone, computed without anything shared.
std::vector<std::vector<int32_t>> one_by_one(const reshard::Model& model,
                                             const std::vector<GenerateRequest>& requests) {
  EngineOptions options = grid(1, 1);
  options.batch.reuse_prefixes = false;
  Engine engine(model, options);
  std::vector<std::vector<int32_t>> ids;
  for (const auto& request : requests) ids.push_back(ids_of(engine, request));
  return ids;
}

}  // namespace

TEST_CASE("engine: every schedule gives the tokens of the requests one by one") {
  // ALiBi, learned positions, rotary ones and localized filtering, whose pages carry a state.
  for (const std::string name : {"bloom", "gpt2", "llama", "yuan", "yuan-groups"}) {
    CAPTURE(name);
    const auto model = open_family(name);
    const auto requests = mixed_requests(17);
    const auto want = one_by_one(model, requests);
    struct Schedule {
      int tp, pp;
      int64_t batch_size, chunk_tokens;
      bool reuse_prefixes;
    };
    for (const Schedule& s :
         {Schedule{1, 1, 0, 512, true}, Schedule{1, 1, 1, 3, true}, Schedule{1, 1, 5, 8, false},
          Schedule{1, 2, 0, 512, true}, Schedule{1, 2, 4, 16, true}, Schedule{2, 2, 3, 5, true},
          Schedule{1, 2, 1, 512, false}}) {
      CAPTURE(s.tp);
      CAPTURE(s.pp);
      CAPTURE(s.batch_size);
      CAPTURE(s.chunk_tokens);
      EngineOptions options = grid(s.tp, s.pp);
      options.batch.batch_size = s.batch_size;
      options.batch.chunk_tokens = s.chunk_tokens;
      options.batch.reuse_prefixes = s.reuse_prefixes;
      Engine engine(model, options);
      for (int round = 0; round < 2; ++round) {
        CAPTURE(round);
        const auto report = engine.generate(requests);
        for (size_t i = 0; i < requests.size(); ++i) {
          CAPTURE(i);
          CHECK(report.results[i].ids == want[i]);
        }
        CHECK((report.reused_tokens > 0) == s.reuse_prefixes);
      }
    }
  }
}

TEST_CASE("engine: four stages work on a batch") {
  const auto model = open_family("llama");
  const auto requests = mixed_requests(9);
  const auto want = one_by_one(model, requests);
  Engine engine(model, grid(1, 4));
  const auto report = engine.generate(requests);
  for (size_t i = 0; i < requests.size(); ++i) CHECK(report.results[i].ids == want[i]);
}

TEST_CASE("engine: a finished sequence makes room for the next and order is kept") {
  const auto model = open_family("llama");
  const auto requests = mixed_requests(12);
  const auto want = one_by_one(model, requests);
  EngineOptions options = grid(1, 1);
  options.batch.batch_size = 3;
  Engine engine(model, options);
  std::vector<size_t> done;
  runtime::GenerateCallbacks callbacks;
  callbacks.on_done = [&](size_t i, const runtime::GenerateResult& result) {
    CHECK(result.ids == want.at(i));
    done.push_back(i);
  };
  const auto report = engine.generate(requests, callbacks);
  CHECK(done.size() == requests.size());
  // Short ones overtake long ones, and the last does not wait for all before it.
  CHECK_FALSE(std::is_sorted(done.begin(), done.end()));
  for (size_t i = 0; i < requests.size(); ++i) CHECK(report.results[i].ids == want[i]);
}

TEST_CASE("engine: keys and values stay in the memory that they are given") {
  const auto model = open_family("llama");
  const auto requests = mixed_requests(12);
  const auto want = one_by_one(model, requests);
  const auto& config = model.config();
  const auto page_bytes = static_cast<uint64_t>(
      config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim * 4 * 4);
  EngineOptions options = grid(1, 1);
  options.batch.kv_memory = 7 * page_bytes;  // the longest needs 7 pages
  Engine engine(model, options);
  const auto report = engine.generate(requests);
  for (size_t i = 0; i < requests.size(); ++i) CHECK(report.results[i].ids == want[i]);

  options.batch.kv_memory = 5 * page_bytes;
  Engine small(model, options);
  const auto fits = greedy({1, 2, 3}, 18);  // 20 tokens, 5 pages
  CHECK(ids_of(small, fits) == one_by_one(model, {fits})[0]);
  const std::array both = {fits, greedy({1, 2, 3}, 19)};
  CHECK_THROWS_WITH_AS(small.generate(both),
                       doctest::Contains("request 2: a prompt of 3 tokens with --max-new-tokens 19 "
                                         "needs a KV cache of"),
                       Error);
  CHECK(ids_of(small, fits) == one_by_one(model, {fits})[0]);
}

TEST_CASE("engine: equal beginnings are computed once in a batch and between calls") {
  for (const int pp : {1, 2}) {
    CAPTURE(pp);
    const auto model = open_family("llama");
    std::vector<int32_t> prefix(40);
    std::iota(prefix.begin(), prefix.end(), 3);
    std::vector<GenerateRequest> requests;
    for (int32_t i = 0; i < 6; ++i) {
      auto prompt = prefix;
      prompt.push_back(i);
      requests.push_back(greedy(prompt, 8));
    }
    const auto want = one_by_one(model, requests);
    Engine engine(model, grid(1, pp));
    const auto first = engine.generate(requests);
    CHECK(first.prompt_tokens == 6 * 41);
    CHECK(first.reused_tokens == 5 * 40);
    const auto second = engine.generate(requests);
    CHECK(second.reused_tokens == 6 * 40);
    for (size_t i = 0; i < requests.size(); ++i) {
      CHECK(first.results[i].ids == want[i]);
      CHECK(second.results[i].ids == want[i]);
    }
    // A next turn finds what was generated, too: 41 + 7 tokens are in the cache.
    auto turn = requests[0];
    turn.prompt_ids.insert(turn.prompt_ids.end(), want[0].begin(), want[0].end());
    turn.prompt_ids.push_back(17);
    const auto third = engine.generate({&turn, 1});
    CHECK(third.reused_tokens == 48);
    CHECK(third.results[0].ids == one_by_one(model, {turn})[0]);
  }
}

TEST_CASE("engine: beginnings are shared only where the length of the sequence turns keys alike") {
  // Dynamic and longrope frequencies depend on the length, here from 12 tokens on.
  for (const std::string kind : {"dynamic", "longrope"}) {
    CAPTURE(kind);
    const test::TempDir dir;
    const auto source = test::golden("families/llama");
    std::filesystem::copy_file(source / "model.safetensors", dir / "model.safetensors");
    auto config = nlohmann::json::parse(std::ifstream(source / "config.json"));
    nlohmann::json scaling = {{"rope_type", kind}, {"factor", 8.0}};
    if (kind == "longrope") {
      const auto pairs = config.at("hidden_size").get<size_t>() /
                         config.at("num_attention_heads").get<size_t>() / 2;
      scaling["short_factor"] = std::vector<double>(pairs, 1.0);
      scaling["long_factor"] = std::vector<double>(pairs, 3.0);
      scaling["original_max_position_embeddings"] = 12;
    } else {
      config["max_position_embeddings"] = 12;
    }
    config["rope_scaling"] = scaling;
    config.erase("rope_parameters");
    std::ofstream(dir / "config.json") << config;
    const auto model = reshard::open_model(dir.path());
    const auto requests = mixed_requests(17);
    const auto want = one_by_one(model, requests);
    for (const int pp : {1, 2}) {
      Engine engine(model, grid(1, pp));
      int64_t reused = 0;
      for (int round = 0; round < 2; ++round) {
        const auto report = engine.generate(requests);
        for (size_t i = 0; i < requests.size(); ++i) {
          CAPTURE(i);
          CHECK(report.results[i].ids == want[i]);
        }
        reused += report.reused_tokens;
      }
      CHECK(reused > 0);
    }
  }
}

TEST_CASE("engine: a failed call leaves no page that was never computed") {
  const auto model = open_family("llama");
  std::vector<int32_t> prompt(33);
  std::iota(prompt.begin(), prompt.end(), 1);
  const auto request = greedy(prompt, 9);
  const auto want = one_by_one(model, {request})[0];
  for (const int pp : {1, 2}) {
    EngineOptions options = grid(1, pp);
    options.batch.chunk_tokens = 16;
    Engine engine(model, options);
    for (int stop_at = 1; stop_at < 4; ++stop_at) {
      int calls = 0;
      CHECK_THROWS_AS(engine.generate({&request, 1},
                                      [&](size_t, int32_t) {
                                        if (++calls == stop_at) throw stop_at;
                                      }),
                      int);
      CHECK(ids_of(engine, request) == want);
    }
  }
}

TEST_CASE("engine: a context that slides goes on from the last half of the positions") {
  for (const std::string name : {"gpt2", "llama", "yuan"}) {
    CAPTURE(name);
    const auto model = open_family(name);
    const int64_t limit = model.config().max_position_embeddings;
    REQUIRE(limit > 20);
    REQUIRE(limit < 1000);
    for (const int pp : {1, 2}) {
      Engine engine(model, grid(1, pp));
      auto request = greedy({5, 6, 7, 8, 9}, limit + 40);
      request.overflow = runtime::ContextOverflow::kSlide;
      const auto ids = ids_of(engine, request);
      REQUIRE(static_cast<int64_t>(ids.size()) == limit + 40);
      // Until the positions are used up nothing differs.
      const auto start = greedy(request.prompt_ids, limit - 5 + 1);
      const auto whole = ids_of(engine, start);
      CHECK(std::vector<int32_t>(ids.begin(), ids.begin() + (limit - 4)) == whole);
      // Then the last half is a prompt of its own.
      std::vector<int32_t> text = request.prompt_ids;
      text.insert(text.end(), whole.begin(), whole.end());
      const std::vector<int32_t> half(text.end() - (limit + 1) / 2, text.end());
      const auto rest = ids_of(engine, greedy(half, 10));
      CHECK(std::vector<int32_t>(ids.begin() + (limit - 4), ids.begin() + (limit + 6)) == rest);
      // A prompt that is too long is cut the same way.
      auto longer = request;
      longer.max_new_tokens = 5;
      for (int i = 0; i < limit; ++i) longer.prompt_ids.push_back(10 + i % 7);
      const std::vector<int32_t> end(longer.prompt_ids.end() - (limit + 1) / 2,
                                     longer.prompt_ids.end());
      CHECK(ids_of(engine, longer) == ids_of(engine, greedy(end, 5)));
    }
  }
}

TEST_CASE("engine: several sequences of a prompt are those of their own random streams") {
  for (const std::string name : {"llama", "yuan"}) {
    CAPTURE(name);
    const auto model = open_family(name);
    auto request = greedy({5, 6, 7, 8, 9, 10}, 12);
    request.sampling = {.temperature = 1.5, .seed = 3};
    Engine engine(model, grid(1, 1));
    const auto single = ids_of(engine, request);
    request.num_sequences = 5;
    const std::array batch = {request, greedy({4, 5, 6}, 7), request};
    const auto result = engine.generate(batch).results[0];
    REQUIRE(result.others.size() == 4);
    CHECK(result.ids == single);
    for (size_t i = 0; i < 4; ++i) {
      CHECK(result.others[i].ids.size() == 12);
      CHECK(result.others[i].ids != single);
    }
    EngineOptions options = grid(2, 2);
    options.page_size = 3;
    options.batch.chunk_tokens = 6;
    Engine other(model, options);
    const auto again = other.generate(batch);
    for (const size_t place : {size_t{0}, size_t{2}}) {
      CHECK(again.results[place].ids == result.ids);
      for (size_t i = 0; i < 4; ++i) {
        CHECK(again.results[place].others[i].ids == result.others[i].ids);
      }
    }
  }
}

namespace {

struct Beam {
  std::vector<int32_t> ids;
  float score = 0;
};

/// Beam search without stop ids, every step computed from the first token on.
std::vector<Beam> search(Engine& engine, const GenerateRequest& request) {
  const auto vocab = static_cast<size_t>(engine.config().vocab_size);
  const auto width = static_cast<size_t>(request.beams.num_beams);
  std::vector<Beam> beams(1);
  for (int64_t step = 0; step < request.max_new_tokens; ++step) {
    std::vector<Beam> candidates;
    for (const Beam& beam : beams) {
      auto text = request.prompt_ids;
      text.insert(text.end(), beam.ids.begin(), beam.ids.end());
      const auto logits = engine.prompt_logits(text);
      const float* row = logits.data() + (text.size() - 1) * vocab;
      const double sum = runtime::log_sum_exp(row, static_cast<int64_t>(vocab));
      for (size_t i = 0; i < vocab; ++i) {
        Beam next = beam;
        next.ids.push_back(static_cast<int32_t>(i));
        next.score += static_cast<float>(static_cast<double>(row[i]) - sum);
        candidates.push_back(std::move(next));
      }
    }
    std::stable_sort(candidates.begin(), candidates.end(),
                     [](const Beam& a, const Beam& b) { return a.score > b.score; });
    candidates.resize(width);
    beams = std::move(candidates);
  }
  return beams;
}

}  // namespace

TEST_CASE("engine: beams that share pages find what a search without a cache finds") {
  for (const std::string name : {"llama", "yuan", "bloom"}) {
    CAPTURE(name);
    const auto model = open_family(name);
    auto request = greedy({5, 6, 7, 8, 9}, 9);
    request.beams.num_beams = 4;
    request.num_sequences = 4;
    request.beams.length_penalty = 0;
    Engine plain(model, grid(1, 1));
    const auto want = search(plain, request);
    const std::array batch = {greedy({5, 6, 7, 8, 9, 3}, 14), request, request};
    for (const auto& [tp, pp] : {std::pair{1, 1}, std::pair{2, 2}}) {
      CAPTURE(pp);
      EngineOptions options = grid(tp, pp);
      options.page_size = 3;
      Engine engine(model, options);
      const auto report = engine.generate(batch);
      CHECK(report.results[0].ids == ids_of(plain, batch[0]));
      for (const size_t place : {size_t{1}, size_t{2}}) {
        const auto& result = report.results[place];
        REQUIRE(result.others.size() == 3);
        for (size_t i = 0; i < 4; ++i) {
          const auto& got = i == 0 ? result : result.others[i - 1];
          CHECK(got.ids == want[i].ids);
          CHECK(static_cast<float>(got.score) == want[i].score);
        }
      }
    }
  }
}

TEST_CASE("engine: log probabilities are those of the model's own logits") {
  const auto model = open_family("llama");
  Engine engine(model, grid(1, 2));
  auto request = greedy({5, 6, 7}, 6);
  request.num_logprobs = 3;
  request.rules.repetition_penalty = 1.5;
  const std::array batch = {greedy({9}, 3), request};
  const auto result = engine.generate(batch).results[1];
  REQUIRE(result.logprobs.size() == 6);
  REQUIRE(result.top_logprobs.size() == 18);
  std::vector<int32_t> text = request.prompt_ids;
  text.insert(text.end(), result.ids.begin(), result.ids.end() - 1);
  const auto logits = engine.prompt_logits(text);
  const auto vocab = static_cast<size_t>(model.config().vocab_size);
  double sum = 0;
  for (size_t i = 0; i < 6; ++i) {
    const float* row = logits.data() + (2 + i) * vocab;
    const double total = runtime::log_sum_exp(row, static_cast<int64_t>(vocab));
    const auto id = static_cast<size_t>(result.ids[i]);
    CHECK(result.logprobs[i] == doctest::Approx(static_cast<double>(row[id]) - total));
    const auto best = std::max_element(row, row + vocab) - row;
    CHECK(result.top_logprobs[3 * i].id == best);
    CHECK(result.top_logprobs[3 * i].logprob >= result.top_logprobs[3 * i + 1].logprob);
    sum += static_cast<double>(result.logprobs[i]);
  }
  CHECK(result.cumulative_logprob == doctest::Approx(sum));
}

TEST_CASE("engine: rules bind the tokens of their own request") {
  const auto model = open_family("llama");
  Engine engine(model, grid(1, 1));
  const auto free = ids_of(engine, greedy({5, 6, 7}, 12));
  auto banned = greedy({5, 6, 7}, 12);
  banned.rules.bad_words = {{free[0]}, {free[2], free[3]}};
  auto longer = greedy({5, 6, 7}, 12);
  longer.stop_ids = {free[1]};
  longer.rules.min_new_tokens = 5;
  const auto report = engine.generate(std::array{banned, longer, greedy({5, 6, 7}, 12)});
  const auto& without = report.results[0].ids;
  CHECK(std::find(without.begin(), without.end(), free[0]) == without.end());
  CHECK(report.results[1].ids.size() >= 6);
  for (size_t i = 0; i < 5; ++i) CHECK(report.results[1].ids[i] != free[1]);
  CHECK(report.results[2].ids == free);
}

TEST_CASE("engine: an interruption ends all sequences with what they have") {
  const auto model = open_family("llama");
  Engine engine(model, grid(1, 2));
  int asked = 0;
  runtime::GenerateCallbacks callbacks;
  callbacks.should_stop = [&] { return ++asked > 5; };
  const std::array batch = {greedy({5, 6, 7}, 50), greedy({9, 4}, 50)};
  const auto report = engine.generate(batch, callbacks);
  for (size_t i = 0; i < 2; ++i) {
    const auto& result = report.results[i];
    CHECK(result.stop_reason == StopReason::kInterrupted);
    CHECK(result.ids.size() < 8);
    const auto whole = ids_of(engine, batch[i]);
    CHECK(std::equal(result.ids.begin(), result.ids.end(), whole.begin()));
  }
}
