// The CUDA back end held to the CPU's decoder. Built twice: for a device, and on the emulated
// machine of tests/cuda_emulation.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "reshard/model.h"
#include "runtime/engine.h"
#include "runtime/tokenizer/tokenizer.h"
#include "tests/gpu/back_end_support.h"
#include "tests/support/test_data.h"

using namespace llmctl;
using namespace llmctl::test;

namespace {

/// Folders of tests/golden/families that the device computes.
std::vector<std::filesystem::path> families() {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(test::golden("families"))) {
    if (!std::filesystem::exists(entry.path() / "golden.json")) continue;
    if (entry.path().filename().string().starts_with("yuan")) continue;
    paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  REQUIRE(paths.size() > 20);
  return paths;
}

}  // namespace

TEST_CASE("cuda: logits of every family are close to the CPU's") {
  for (const auto& path : families()) {
    CAPTURE(path.filename().string());
    const auto model = reshard::open_model(path);
    for (const DType dtype : {DType::F16, DType::BF16}) {
      CAPTURE(dtype_name(dtype));
      EngineOptions cpu = on(Device::kCpu), cuda = on(Device::kCuda);
      cpu.dtype = cuda.dtype = dtype;
      // Passes of 18 tokens and of one, which take other kernels.
      cuda.batch.chunk_tokens = 18;
      const std::vector<int32_t> ids = some_ids(37);
      const std::vector<float> want = Engine(model, cpu).prompt_logits(ids);
      const std::vector<float> got = Engine(model, cuda).prompt_logits(ids);
      CHECK(difference(got, want) <= (dtype == DType::F16 ? 0.01F : 0.2F));
    }
  }
}

TEST_CASE("cuda: logits have the same bits on every grid") {
  for (const auto& path : families()) {
    CAPTURE(path.filename().string());
    const auto model = reshard::open_model(path);
    const std::vector<int32_t> ids = some_ids(21);
    std::vector<float> want;
    for (const auto& [tp, pp] : {std::pair{1, 1}, {2, 1}, {1, 2}, {2, 2}}) {
      if (model.config().num_attention_heads % tp != 0) continue;
      CAPTURE(tp);
      CAPTURE(pp);
      EngineOptions options = on(Device::kCuda, tp, pp);
      options.dtype = DType::F16;
      const std::vector<float> got = Engine(model, options).prompt_logits(ids);
      if (want.empty()) want = got;
      CHECK(difference(got, want) <= 1e-2F);
      // Padding a rank's part of the MLP to eight moves it to other steps of the products.
      if (model.config().intermediate_size % (8 * tp) != 0) continue;
      CHECK(std::memcmp(got.data(), want.data(), got.size() * sizeof(float)) == 0);
    }
  }
}

TEST_CASE("cuda: trained models write the CPU's ids on every grid and in a batch") {
  const std::vector<std::string> prompts = {"Once upon a time",
                                            "The dog",
                                            "Lily wanted to",
                                            "One day, a little girl named Mia found a",
                                            "Tom",
                                            "It was a sunny day and the children",
                                            "\"Can I play?\" asked",
                                            "The big bear was sad"};
  for (const char* name : {"llama-stories", "bloom-stories"}) {
    CAPTURE(name);
    const auto path = test::source_root() / "samples" / name;
    const auto model = reshard::open_model(path);
    const auto tokenizer = runtime::open_tokenizer(path);
    std::vector<GenerateRequest> requests;
    for (const std::string& text : prompts) {
      requests.push_back(greedy(tokenizer->encode(text, true), 64));
    }
    EngineOptions options = on(Device::kCpu);
    options.dtype = DType::F16;  // BF16 rounds too much for near ties
    Engine cpu(model, options);
    const auto want = generate(cpu, requests);
    for (const auto& [tp, pp] : {std::pair{1, 1}, {2, 1}, {1, 2}}) {
      CAPTURE(tp);
      CAPTURE(pp);
      options = on(Device::kCuda, tp, pp);
      options.dtype = DType::F16;
      Engine cuda(model, options);
      // Ranks have equal bits (above): a few tokens show that they pass them on.
      const bool single = tp * pp == 1;
      const int64_t tokens = std::string_view(name).starts_with("llama") ? 64 : 24;
      if (single) CHECK(generate(cuda, {requests[3]}).front() == want[3]);
      std::vector<GenerateRequest> batch = requests;
      for (GenerateRequest& request : batch) request.max_new_tokens = single ? tokens : 12;
      const auto got = generate(cuda, batch);
      for (size_t i = 0; i < got.size(); ++i) {
        CAPTURE(prompts[i]);
        const auto length = static_cast<std::ptrdiff_t>(std::min(want[i].size(), got[i].size()));
        CHECK(length >= std::min<std::ptrdiff_t>(12, static_cast<std::ptrdiff_t>(want[i].size())));
        CHECK(got[i] == std::vector(want[i].begin(), want[i].begin() + length));
      }
    }
  }
}

TEST_CASE("cuda: sampling and beams run on the device's logits") {
  const auto model = reshard::open_model(test::golden("families/llama"));
  GenerateRequest drawn = greedy(some_ids(9), 10), beams = greedy(some_ids(5), 8);
  drawn.sampling.temperature = 0.8F;
  drawn.sampling.seed = 3;
  beams.beams.num_beams = 3;
  EngineOptions options = on(Device::kCuda);
  options.dtype = DType::F16;
  std::vector<std::vector<int32_t>> first;
  for (const int pp : {1, 2}) {
    options.pp = pp;
    Engine engine(model, options);
    const auto ids = generate(engine, {drawn, beams});
    CHECK(ids[0].size() == 10);
    CHECK(ids[1].size() == 8);
    if (first.empty()) first = ids;
    CHECK(ids == first);
  }
}
