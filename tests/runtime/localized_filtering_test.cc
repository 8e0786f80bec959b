// Yuan 2.0's filter in the decoder: what stands before a sequence's first token, and what is
// carried from one pass to the next. Its formulas are held by the goldens that engine_test.cc runs.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <numeric>

#include "formats/core/error.h"
#include "reshard/model.h"
#include "runtime/engine.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"

using namespace llmctl;
using runtime::Engine;
using runtime::EngineOptions;
using runtime::GenerateRequest;

namespace {

constexpr std::array kModels = {"yuan", "yuan-groups", "yuan-bf16-rope"};

/// A copy of tests/golden/families/yuan whose F32 tensors can be changed.
class EditableModel {
 public:
  EditableModel() {
    const auto source = test::golden("families/yuan");
    std::filesystem::copy_file(source / "config.json", dir_ / "config.json");
    std::ifstream in(source / "model.safetensors", std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(in), {});
    uint64_t header_size = 0;
    std::memcpy(&header_size, bytes_.data(), sizeof header_size);
    header_ = nlohmann::json::parse(bytes_.substr(8, header_size));
    data_ = 8 + header_size;
  }

  std::vector<float> get(const std::string& name) const {
    const auto [begin, size] = place(name);
    std::vector<float> values(size / sizeof(float));
    std::memcpy(values.data(), bytes_.data() + begin, size);
    return values;
  }
  void set(const std::string& name, const std::vector<float>& values) {
    const auto [begin, size] = place(name);
    REQUIRE(values.size() * sizeof(float) == size);
    std::memcpy(bytes_.data() + begin, values.data(), size);
  }
  std::vector<float> logits(const std::vector<int32_t>& ids) {
    std::ofstream(dir_ / "model.safetensors", std::ios::binary) << bytes_;
    EngineOptions options;
    options.threads = 1;
    return Engine(reshard::open_model(dir_.path()), options).prompt_logits(ids);
  }

 private:
  std::pair<size_t, size_t> place(const std::string& name) const {
    const auto offsets = header_.at(name).at("data_offsets").get<std::array<size_t, 2>>();
    return {data_ + offsets[0], offsets[1] - offsets[0]};
  }

  test::TempDir dir_;
  std::string bytes_;
  nlohmann::json header_;
  size_t data_ = 0;
};

float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  float worst = 0;
  for (size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(a[i] - b[i]));
  return worst;
}

GenerateRequest greedy(std::vector<int32_t> prompt, int64_t tokens) {
  GenerateRequest request;
  request.prompt_ids = std::move(prompt);
  request.max_new_tokens = tokens;
  return request;
}

}  // namespace

TEST_CASE("localized filtering: before the first token stands zero and not the first bias") {
  // With W1 = 0 every y1 is b1, so the filter adds B1 b1 + b2 at the first token, whose other half
  // sees nothing, and (B0 + B1) b1 + b2 at all others. The same function without a bias in conv1
  // and without a look back, for the prompt (kFirst, kSecond): conv1 tells the two tokens apart by
  // a vector that is orthogonal to the one and has product 1 with the other.
  constexpr int32_t kFirst = 7, kSecond = 9;
  EditableModel with_bias, told_apart, always_both;
  for (int layer = 1; layer < 3; ++layer) {
    const std::string gate = "model.layers." + std::to_string(layer) + ".self_attn.lf_gate.";
    for (EditableModel* model : {&with_bias, &told_apart, &always_both}) {
      model->set(gate + "conv2.weight",
                 std::vector<float>(model->get(gate + "conv2.weight").size(), 0.0F));
    }
  }
  const std::string gate = "model.layers.0.self_attn.lf_gate.";
  const std::vector<float> b1 = with_bias.get(gate + "conv1.bias");
  const std::vector<float> b2 = with_bias.get(gate + "conv2.bias");
  const std::vector<float> w2 = with_bias.get(gate + "conv2.weight");  // (hidden, half, 2, 1)
  const size_t hidden = b2.size(), half = b1.size();
  std::vector<float> first = b2, both = b2, change(w2.size(), 0.0F);
  for (size_t o = 0; o < hidden; ++o) {
    for (size_t c = 0; c < half; ++c) {
      const float* taps = &w2[(o * half + c) * 2];
      first[o] += taps[1] * b1[c];
      both[o] += (taps[0] + taps[1]) * b1[c];
    }
    change[o * half * 2 + 1] = both[o] - first[o];  // from y1's first channel, at the token itself
  }
  const auto normed = [&](int32_t id) {
    const std::vector<float> table = with_bias.get("model.embed_tokens.weight");
    const std::vector<float> weight = with_bias.get("model.layers.0.input_layernorm.weight");
    std::vector<double> row(hidden);
    double squares = 0;
    for (size_t i = 0; i < hidden; ++i) {
      row[i] = static_cast<double>(table[static_cast<size_t>(id) * hidden + i]);
      squares += row[i] * row[i];
    }
    const double scale = 1 / std::sqrt(squares / static_cast<double>(hidden) + 1e-6);
    for (size_t i = 0; i < hidden; ++i) row[i] *= scale * static_cast<double>(weight[i]);
    return row;
  };
  const std::vector<double> n0 = normed(kFirst), n1 = normed(kSecond);
  const double along = std::inner_product(n0.begin(), n0.end(), n1.begin(), 0.0) /
                       std::inner_product(n0.begin(), n0.end(), n0.begin(), 0.0);
  std::vector<double> apart = n1;
  for (size_t i = 0; i < hidden; ++i) apart[i] -= along * n0[i];
  const double length = std::inner_product(apart.begin(), apart.end(), n1.begin(), 0.0);
  std::vector<float> w1(half * hidden * 2, 0.0F);  // (half, hidden, 2, 1)
  with_bias.set(gate + "conv1.weight", w1);
  always_both.set(gate + "conv1.weight", w1);
  for (size_t c = 0; c < hidden; ++c) w1[c * 2 + 1] = static_cast<float>(apart[c] / length);
  told_apart.set(gate + "conv1.weight", w1);
  told_apart.set(gate + "conv2.weight", change);
  told_apart.set(gate + "conv2.bias", first);
  always_both.set(gate + "conv2.bias", both);
  for (EditableModel* model : {&told_apart, &always_both}) {
    model->set(gate + "conv1.bias", std::vector<float>(half, 0.0F));
  }

  const std::vector<int32_t> prompt = {kFirst, kSecond};
  const std::vector<float> want = told_apart.logits(prompt);
  const auto [low, high] = std::minmax_element(want.begin(), want.end());
  CHECK(largest_difference(with_bias.logits(prompt), want) <= 1e-5F * (*high - *low));
  CHECK(largest_difference(always_both.logits(prompt), want) > 1e-3F * (*high - *low));
}

TEST_CASE("localized filtering: logits have the same bits however a prompt is cut") {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 23; ++i) ids.push_back(4 + i * 37 % 93);
  for (const char* name : kModels) {
    CAPTURE(name);
    const auto model = reshard::open_model(test::golden(std::string("families/") + name));
    EngineOptions whole;
    whole.threads = 1;
    const std::vector<float> want = Engine(model, whole).prompt_logits(ids);
    struct Cut {
      int tp, pp;
      int64_t chunk, page;
    };
    // Passes that end inside, at and behind the end of a page, and pages that passes fill in part.
    for (const auto& [tp, pp, chunk, page] :
         {Cut{1, 1, 1, 1}, Cut{1, 1, 1, 4}, Cut{2, 1, 2, 3}, Cut{1, 2, 5, 5}, Cut{4, 1, 8, 4},
          Cut{4, 2, 3, 16}, Cut{2, 2, 22, 1}}) {
      CAPTURE(tp);
      CAPTURE(chunk);
      CAPTURE(page);
      EngineOptions options;
      options.tp = tp;
      options.pp = pp;
      options.batch.chunk_tokens = chunk;
      options.page_size = page;
      options.threads = 2;
      const std::vector<float> got = Engine(model, options).prompt_logits(ids);
      REQUIRE(got.size() == want.size());
      CHECK(std::memcmp(got.data(), want.data(), got.size() * sizeof(float)) == 0);
    }
  }
}

TEST_CASE("localized filtering: a sequence does not see its neighbours nor who had its pages") {
  const std::vector<GenerateRequest> requests = {
      greedy({5}, 9),          greedy({5, 6, 7, 8, 9, 10, 11}, 1),
      greedy({12, 13}, 14),    greedy({5}, 9),
      greedy({14, 15, 16}, 0), greedy({90, 3, 61, 17, 44}, 20)};
  for (const char* name : kModels) {
    CAPTURE(name);
    const auto model = reshard::open_model(test::golden(std::string("families/") + name));
    EngineOptions options;
    options.threads = 1;
    Engine single(model, options);
    options.batch.chunk_tokens = 4;
    options.page_size = 2;
    Engine batched(model, options);
    // The second round finds the states that the first left in every page.
    for (int round = 0; round < 2; ++round) {
      const auto report = batched.generate(requests);
      for (size_t i = 0; i < requests.size(); ++i) {
        CAPTURE(i);
        CHECK(report.results[i].ids == single.generate({&requests[i], 1}).results[0].ids);
      }
    }
  }
}

TEST_CASE("localized filtering: Megatron's files run as the Hugging Face form of the model does") {
  const auto folder = test::golden("megatron/yuan");
  const std::vector<int32_t> ids = {5, 6, 7, 8, 9, 10, 11, 12, 3, 2};
  const auto run = [&](const char* name, int tp, int pp) {
    EngineOptions options;
    options.tp = tp;
    options.pp = pp;
    options.threads = 1;
    return Engine(reshard::open_model(folder / name), options).prompt_logits(ids);
  };
  const std::vector<float> want = run("hf", 1, 1);
  CHECK(run("pp3", 1, 1) == want);
  CHECK(run("pp3", 2, 2) == want);
  CHECK(run("merged-tp2", 4, 1) == want);
  CHECK(reshard::open_model(folder / "pp3").config().rope_in_bf16);
  CHECK(reshard::open_model(folder / "hf").config().rope_in_bf16);
}

TEST_CASE("localized filtering: the rotary precision can be chosen for a run") {
  const auto model = reshard::open_model(test::golden("families/yuan"));
  const std::vector<int32_t> ids = {5, 6, 7, 8, 9, 10, 11, 12};
  const auto run = [&](std::optional<bool> in_bf16) {
    EngineOptions options;
    options.threads = 1;
    options.rope_in_bf16 = in_bf16;
    return Engine(model, options).prompt_logits(ids);
  };
  CHECK(run(false) == run({}));
  CHECK(run(true) != run({}));
}
