#include "runtime/engine.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>

#include "formats/core/error.h"
#include "reshard/model.h"
#include "tests/support/npy.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"

using namespace llmctl;
using runtime::Engine;
using runtime::EngineOptions;
using runtime::GenerateRequest;

namespace {

/// A golden folder of tests/golden/families: the model and what transformers makes of it.
struct FamilyCase {
  std::string name;
  std::filesystem::path path;
  float tolerance = 1e-4F;  ///< of a logit, as a part of their range
  struct Prompt {
    std::vector<int32_t> ids, greedy;
    test::NpyArray logits;
  };
  std::vector<Prompt> prompts;
};

std::vector<FamilyCase> family_cases() {
  std::vector<FamilyCase> cases;
  for (const auto& entry : std::filesystem::directory_iterator(test::golden("families"))) {
    const auto file = entry.path() / "golden.json";
    if (!std::filesystem::exists(file)) continue;
    const auto json = nlohmann::json::parse(std::ifstream(file));
    FamilyCase c{
        entry.path().filename().string(), entry.path(), json.value("tolerance", 1e-4F), {}};
    for (const auto& g : json.at("cases")) {
      c.prompts.push_back({g.at("input_ids").get<std::vector<int32_t>>(),
                           g.at("greedy_ids").get<std::vector<int32_t>>(),
                           test::read_npy(entry.path() / g.at("logits").get<std::string>())});
    }
    cases.push_back(std::move(c));
  }
  std::sort(cases.begin(), cases.end(),
            [](const FamilyCase& a, const FamilyCase& b) { return a.name < b.name; });
  REQUIRE(cases.size() > 8);
  return cases;
}

EngineOptions grid(int tp, int pp) {
  EngineOptions options;
  options.tp = tp;
  options.pp = pp;
  options.threads = 1;
  return options;
}

GenerateRequest greedy(std::vector<int32_t> prompt, int64_t tokens) {
  GenerateRequest request;
  request.prompt_ids = std::move(prompt);
  request.max_new_tokens = tokens;
  return request;
}

std::vector<int32_t> generate_one(Engine& engine, const GenerateRequest& request) {
  return engine.generate({&request, 1}).results.at(0).ids;
}

/// Also tells 0 from -0, and a NaN is equal to itself.
bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::filesystem::path llama_path() { return test::golden("families/llama"); }

}  // namespace

TEST_CASE("engine: logits and greedy ids of every family are those of transformers") {
  for (const FamilyCase& c : family_cases()) {
    CAPTURE(c.name);
    Engine engine(reshard::open_model(c.path), grid(1, 1));
    for (const auto& prompt : c.prompts) {
      const auto [low, high] =
          std::minmax_element(prompt.logits.values.begin(), prompt.logits.values.end());
      const std::vector<float> got = engine.prompt_logits(prompt.ids);
      REQUIRE(got.size() == prompt.logits.values.size());
      float worst = 0;
      for (size_t i = 0; i < got.size(); ++i) {
        worst = std::max(worst, std::abs(got[i] - prompt.logits.values[i]));
      }
      CHECK(worst <= c.tolerance * (*high - *low));
      CHECK(generate_one(engine, greedy(prompt.ids, static_cast<int64_t>(prompt.greedy.size()))) ==
            prompt.greedy);
    }
  }
}

TEST_CASE("engine: a cache of 16 bits stays close and has the same bits on every grid") {
  for (const FamilyCase& c : family_cases()) {
    CAPTURE(c.name);
    const auto model = reshard::open_model(c.path);
    const auto& prompt = c.prompts.front();
    const auto [low, high] =
        std::minmax_element(prompt.logits.values.begin(), prompt.logits.values.end());
    for (const DType dtype : {DType::F16, DType::BF16}) {
      CAPTURE(dtype_name(dtype));
      EngineOptions options = grid(1, 1);
      options.kv_dtype = dtype;
      const std::vector<float> got = Engine(model, options).prompt_logits(prompt.ids);
      float worst = 0;
      for (size_t i = 0; i < got.size(); ++i) {
        worst = std::max(worst, std::abs(got[i] - prompt.logits.values[i]));
      }
      CHECK(worst > 0);
      CHECK(worst <= (dtype == DType::F16 ? 0.005F : 0.04F) * (*high - *low));
      options.tp = 2;
      options.page_size = 4;
      options.batch.chunk_tokens = 7;
      options.threads = 3;
      if (model.config().num_attention_heads % 2 != 0) continue;
      CHECK(same_bits(Engine(model, options).prompt_logits(prompt.ids), got));
    }
  }
}

TEST_CASE("engine: BF16 activations stay close and have the same bits on every grid") {
  for (const FamilyCase& c : family_cases()) {
    CAPTURE(c.name);
    const auto model = reshard::open_model(c.path);
    const auto& prompt = c.prompts.front();
    EngineOptions options = grid(1, 1);
    options.dtype = DType::BF16;
    const std::vector<float> exact = Engine(model, options).prompt_logits(prompt.ids);
    const auto [low, high] = std::minmax_element(exact.begin(), exact.end());
    options.activations = kernels::Activations::kBF16;
    const std::vector<float> got = Engine(model, options).prompt_logits(prompt.ids);
    float worst = 0;
    for (size_t i = 0; i < got.size(); ++i) worst = std::max(worst, std::abs(got[i] - exact[i]));
    CHECK(worst > 0);
    CHECK(worst <= 0.05F * (*high - *low));
    options.tp = 2;
    options.page_size = 4;
    options.batch.chunk_tokens = 7;
    options.threads = 3;
    if (model.config().num_attention_heads % 2 != 0) continue;
    CHECK(same_bits(Engine(model, options).prompt_logits(prompt.ids), got));
  }
}

TEST_CASE("engine: output has the same bits on every grid and in every batch") {
  for (const FamilyCase& c : family_cases()) {
    CAPTURE(c.name);
    const auto model = reshard::open_model(c.path);
    const int64_t tokens = 12;
    Engine single(model, grid(1, 1));
    std::vector<std::vector<float>> logits;
    std::vector<GenerateRequest> batch;
    std::vector<std::vector<int32_t>> ids;
    for (const auto& prompt : c.prompts) {
      logits.push_back(single.prompt_logits(prompt.ids));
      batch.push_back(greedy(prompt.ids, tokens));
    }
    batch.push_back(greedy({3}, tokens + 5));
    for (const auto& request : batch) ids.push_back(generate_one(single, request));

    for (const int tp : {1, 2, 4}) {
      for (const int pp : {1, 2}) {
        CAPTURE(tp);
        CAPTURE(pp);
        EngineOptions options = grid(tp, pp);
        // Other sizes of everything that must not matter.
        options.page_size = 4;
        options.batch.chunk_tokens = 7;
        options.threads = 3;
        std::optional<Engine> engine;
        try {
          engine.emplace(model, options);
        } catch (const Error& error) {
          CHECK(error.code() == ErrorCode::kUsage);
          CHECK(model.config().num_attention_heads % tp != 0);
          continue;
        }
        for (size_t i = 0; i < c.prompts.size(); ++i) {
          CHECK(same_bits(engine->prompt_logits(c.prompts[i].ids), logits[i]));
        }
        const auto report = engine->generate(batch);
        for (size_t i = 0; i < batch.size(); ++i) CHECK(report.results[i].ids == ids[i]);
      }
    }
  }
}

TEST_CASE("engine: trained models give the recorded logits and continuations") {
  for (const std::string name : {"llama-stories260K", "llama-babyllama-tok105", "gpt2-nano-sort",
                                 "opt-tinystories-char59"}) {
    const auto path = test::test_data("models/" + name);
    if (!path) continue;
    CAPTURE(name);
    Engine engine(reshard::open_model(*path), grid(1, 2));
    const auto golden = nlohmann::json::parse(std::ifstream(*path / "golden.json"));
    for (const auto& c : golden) {
      const auto ids = c.at("input_ids").get<std::vector<int32_t>>();
      const auto want = c.at("last_logits_float64").get<std::vector<double>>();
      const auto continuation = c.at("greedy_ids").get<std::vector<int32_t>>();
      const std::vector<float> all = engine.prompt_logits(ids);
      const size_t first = all.size() - want.size();
      const auto [low, high] = std::minmax_element(want.begin(), want.end());
      for (size_t i = 0; i < want.size(); ++i) {
        REQUIRE(std::abs(static_cast<double>(all[first + i]) - want[i]) <= 1e-4 * (*high - *low));
      }
      CHECK(generate_one(engine, greedy(ids, static_cast<int64_t>(continuation.size()))) ==
            continuation);
    }
  }
}

TEST_CASE("engine: the trained sorter sorts every input of six letters") {
  const auto path = test::test_data("models/gpt2-nano-sort");
  if (!path) return;
  Engine engine(reshard::open_model(*path), grid(1, 1));
  std::vector<GenerateRequest> requests;
  std::vector<std::vector<int32_t>> sorted;
  for (int n = 0; n < 729; ++n) {
    std::vector<int32_t> letters;
    for (int i = 0, rest = n; i < 6; ++i, rest /= 3) letters.push_back(rest % 3);
    requests.push_back(greedy(letters, 6));
    std::sort(letters.begin(), letters.end());
    sorted.push_back(letters);
  }
  const auto report = engine.generate(requests);
  for (size_t i = 0; i < requests.size(); ++i) CHECK(report.results[i].ids == sorted[i]);
}

TEST_CASE("engine: a stop id ends its own sequence only and is kept") {
  Engine engine(reshard::open_model(llama_path()), grid(1, 1));
  auto first = greedy({5, 6, 7}, 20);
  auto second = greedy({9, 8}, 20);
  const auto free_run = engine.generate(std::array{first, second});
  const auto& ids = free_run.results[0].ids;
  CHECK(free_run.results[0].stop_reason == runtime::StopReason::kLength);
  first.stop_ids = {1000, ids[4]};
  const auto report = engine.generate(std::array{first, second});
  const auto end = std::find(ids.begin(), ids.end(), ids[4]) + 1;
  CHECK(report.results[0].ids == std::vector<int32_t>(ids.begin(), end));
  CHECK(report.results[0].stop_reason == runtime::StopReason::kStopId);
  CHECK(report.results[1].ids == free_run.results[1].ids);
}

TEST_CASE("engine: the callback sees each token of each sequence in order") {
  Engine engine(reshard::open_model(llama_path()), grid(2, 2));
  const std::array requests = {greedy({5, 6, 7}, 9), greedy({4}, 3), greedy({1, 2}, 0)};
  std::vector<std::vector<int32_t>> seen(3);
  const auto report =
      engine.generate(requests, [&](size_t i, int32_t id) { seen.at(i).push_back(id); });
  for (size_t i = 0; i < 3; ++i) CHECK(seen[i] == report.results[i].ids);
  CHECK(seen[0].size() == 9);
  CHECK(seen[1].size() == 3);
  CHECK(seen[2].empty());
  CHECK(report.prompt_tokens == 4);
  CHECK(report.decoded_tokens == 10);
}

TEST_CASE("engine: what the callback throws comes back and the engine goes on working") {
  Engine engine(reshard::open_model(llama_path()), grid(2, 2));
  const auto request = greedy({5, 6, 7}, 9);
  const auto ids = generate_one(engine, request);
  struct Stop {};
  int calls = 0;
  CHECK_THROWS_AS(engine.generate({&request, 1},
                                  [&](size_t, int32_t) {
                                    if (++calls == 3) throw Stop{};
                                  }),
                  Stop);
  CHECK(calls == 3);
  CHECK(generate_one(engine, request) == ids);
}

TEST_CASE("engine: a rank that fails is named and the others do not hang") {
  const test::TempDir dir;
  std::filesystem::copy_file(llama_path() / "config.json", dir / "config.json");
  // The final norm's weights become NaN, so that the first rank of the last stage cannot choose.
  std::ifstream in(llama_path() / "model.safetensors", std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(in)), {});
  uint64_t header_size = 0;
  std::memcpy(&header_size, bytes.data(), sizeof header_size);
  const auto header = nlohmann::json::parse(bytes.substr(8, header_size));
  const auto offsets =
      header.at("model.norm.weight").at("data_offsets").get<std::array<size_t, 2>>();
  std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(8 + header_size + offsets[0]),
              offsets[1] - offsets[0], '\xFF');
  std::ofstream(dir / "model.safetensors", std::ios::binary) << bytes;

  const auto model = reshard::open_model(dir.path());
  const auto request = greedy({5, 6, 7}, 9);
  Engine engine(model, grid(2, 2));
  CHECK_THROWS_WITH_AS(engine.generate({&request, 1}),
                       doctest::Contains("rank 2: position 3: the model's logits are not finite"),
                       Error);
  Engine alone(model, grid(1, 1));
  try {
    alone.generate({&request, 1});
    FAIL("NaN was generated from");
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kInvalidInput);
    CHECK(std::string(error.what()).starts_with("position 3:"));
  }
}

TEST_CASE("engine: a stage holds only its own weights") {
  const auto model = reshard::open_model(llama_path());
  // An untied model has nothing that two stages need.
  CHECK(Engine(model, grid(1, 2)).weight_bytes() == Engine(model, grid(1, 1)).weight_bytes());
}

TEST_CASE("engine: drawn tokens depend on the seed and not on grid or batch") {
  const auto model = reshard::open_model(llama_path());
  Engine engine(model, grid(1, 1));
  Engine split(model, grid(2, 2));
  const auto drawn = [](std::vector<int32_t> prompt, uint64_t seed) {
    auto request = greedy(std::move(prompt), 30);
    request.sampling = {.temperature = 1.0, .top_k = 40, .top_p = 0.95, .seed = seed};
    return request;
  };
  const std::array batch = {drawn({5, 6}, 1), drawn({5, 6}, 2), drawn({7}, 1)};
  const auto together = split.generate(batch);
  for (size_t i = 0; i < batch.size(); ++i) {
    CHECK(generate_one(engine, batch[i]) == together.results[i].ids);
  }
  CHECK(together.results[0].ids != together.results[1].ids);
}

TEST_CASE("engine: matrices cast on load stay close to the stored ones") {
  const auto model = reshard::open_model(llama_path());
  Engine exact(model, grid(1, 1));
  const std::vector<int32_t> ids = {5, 6, 7, 8};
  const auto want = exact.prompt_logits(ids);
  const auto [low, high] = std::minmax_element(want.begin(), want.end());
  for (const auto& [dtype, tolerance] :
       {std::pair{DType::F16, 0.005F}, std::pair{DType::BF16, 0.04F}}) {
    CAPTURE(dtype_name(dtype));
    EngineOptions options = grid(2, 1);
    options.dtype = dtype;
    Engine engine(model, options);
    const auto got = engine.prompt_logits(ids);
    float worst = 0;
    for (size_t i = 0; i < got.size(); ++i) worst = std::max(worst, std::abs(got[i] - want[i]));
    CHECK(worst > 0);
    CHECK(worst <= tolerance * (*high - *low));
    CHECK(engine.weight_bytes() < exact.weight_bytes() * 6 / 10);
  }
}

TEST_CASE("engine: requests that cannot be met are refused before they run") {
  const auto model = reshard::open_model(llama_path());
  Engine engine(model, grid(1, 1));
  const auto refusal = [&](const GenerateRequest& request) -> std::string {
    try {
      engine.generate({&request, 1});
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kUsage);
      return error.what();
    }
    return "";
  };
  CHECK(refusal(greedy({}, 5)) == "prompt: has no tokens");
  CHECK(refusal(greedy({1, 97}, 5)).find("token id 97 is outside the vocabulary of 97") !=
        std::string::npos);
  CHECK(refusal(greedy({1, -1}, 5)).find("token id -1") != std::string::npos);
  CHECK(refusal(greedy(std::vector<int32_t>(100, 1), 30)) ==
        "prompt of 100 tokens: with --max-new-tokens 30 it needs more than the model's 128 "
        "positions; use --max-new-tokens 29 or less, or "
        "--context-overflow slide");
  CHECK(refusal(greedy(std::vector<int32_t>(100, 1), 29)) == "");
  CHECK(refusal(greedy(std::vector<int32_t>(129, 1), 1)).find("shorten the prompt") !=
        std::string::npos);
  CHECK_THROWS_WITH_AS(Engine(model, grid(3, 1)), doctest::Contains("--tp 3"), Error);
  CHECK_THROWS_WITH_AS(Engine(model, grid(1, 9)), doctest::Contains("--pp 9"), Error);
}
