// The CUDA back end on the emulated machine, held to the CPU's decoder.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "formats/core/error.h"
#include "reshard/model.h"
#include "runtime/cuda/back_end.h"
#include "runtime/cuda/decoder.h"
#include "runtime/engine.h"
#include "runtime/tokenizer/tokenizer.h"
#include "tests/cuda_emulation/control.h"
#include "tests/support/test_data.h"

using namespace llmctl;
using runtime::Device;
using runtime::Engine;
using runtime::EngineOptions;
using runtime::GenerateRequest;

namespace {

EngineOptions on(Device device, int tp = 1, int pp = 1) {
  EngineOptions options;
  options.device = device;
  options.share_device = true;
  options.tp = tp;
  options.pp = pp;
  options.threads = 1;
  return options;
}

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

/// Ids that look random: `count` of them from a vocabulary of at least 97.
std::vector<int32_t> some_ids(int64_t count, int32_t seed = 1) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < count; ++i) ids.push_back((i * i * 31 + seed * 17 + i * 7) % 90 + 3);
  return ids;
}

/// Largest difference as a part of the range of `want`; infinite for what is not finite.
float difference(const std::vector<float>& got, const std::vector<float>& want) {
  REQUIRE(got.size() == want.size());
  const auto [low, high] = std::minmax_element(want.begin(), want.end());
  float worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (!std::isfinite(got[i])) return INFINITY;
    worst = std::max(worst, std::abs(got[i] - want[i]));
  }
  return worst / (*high - *low);
}

GenerateRequest greedy(std::vector<int32_t> prompt, int64_t tokens) {
  GenerateRequest request;
  request.prompt_ids = std::move(prompt);
  request.max_new_tokens = tokens;
  return request;
}

std::vector<std::vector<int32_t>> generate(Engine& engine,
                                           const std::vector<GenerateRequest>& requests) {
  std::vector<std::vector<int32_t>> ids;
  for (const auto& result : engine.generate(requests).results) ids.push_back(result.ids);
  return ids;
}

/// What `f` throws.
template <typename F>
Error caught(const F& f) {
  try {
    f();
  } catch (const Error& error) {
    return error;
  }
  FAIL("nothing was thrown");
  return Error(ErrorCode::kInternal, "");
}

}  // namespace

TEST_CASE("cuda emulation: logits of every family are close to the CPU's") {
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
  CHECK(cuda_emulation::bytes_in_use() == 0);
}

TEST_CASE("cuda emulation: logits have the same bits on every grid") {
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

TEST_CASE("cuda emulation: trained models write the CPU's ids on every grid and in a batch") {
  const std::vector<std::string> prompts = {"Once upon a time",
                                            "The dog",
                                            "Lily wanted to",
                                            "One day, a little girl named Mia found a",
                                            "Tom",
                                            "It was a sunny day and the children",
                                            "\"Can I play?\" asked",
                                            "The big bear was sad"};
  cuda_emulation::Settings one;
  one.num_sms = 1;  // fewer blocks for the same work
  cuda_emulation::set_settings(one);
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

TEST_CASE("cuda emulation: a library for large products is used and changes little") {
  for (const char* name : {"gpt2", "llama", "llama-bias", "opt-350m", "bloom", "gpt_neox"}) {
    CAPTURE(name);
    const auto model = reshard::open_model(test::golden(std::string("families/") + name));
    const std::vector<int32_t> ids = some_ids(40);
    EngineOptions options = on(Device::kCuda);
    options.dtype = DType::F16;
    const std::vector<float> own = Engine(model, options).prompt_logits(ids);
    cuda_emulation::set_settings({.has_blas = true});
    const std::vector<float> through = Engine(model, options).prompt_logits(ids);
    cuda_emulation::set_settings({});
    CHECK(difference(through, own) <= 0.01F);
    CHECK(through != own);
  }
}

TEST_CASE("cuda emulation: decode steps are replayed as graphs and go on as without") {
  const auto model = reshard::open_model(test::source_root() / "samples" / "llama-stories");
  // 20 tokens: over the end of a page, which gives the pass's arrays another layout.
  const GenerateRequest request = greedy(some_ids(5), 20);
  std::vector<int32_t> want;
  for (const auto& [tp, pp] : {std::pair{1, 1}, {2, 1}, {1, 2}}) {
    CAPTURE(tp);
    CAPTURE(pp);
    const uint64_t before = cuda_emulation::num_graph_launches();
    Engine engine(model, on(Device::kCuda, tp, pp));
    const auto ids = generate(engine, {request}).front();
    CHECK(ids.size() == 20);
    if (want.empty()) want = ids;
    CHECK(ids == want);
    const auto replayed = static_cast<int64_t>(cuda_emulation::num_graph_launches() - before);
    // All passes but each layout's first, on each stage. With tp the host takes part in a pass.
    CHECK(replayed == (tp > 1 ? 0 : pp * (19 - 2)));
  }
}

TEST_CASE("cuda emulation: sampling and beams run on the device's logits") {
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

TEST_CASE("cuda emulation: what keeps a process from its GPUs is said in one line") {
  struct Case {
    cuda_emulation::Settings settings;
    const char* message;
  };
  const Case cases[] = {
      {{.driver_version = 0}, "no NVIDIA driver is loaded on this machine"},
      {{.driver_version = 12080},
       "the NVIDIA driver is for CUDA 12.8, this llmctl was built for CUDA 13.0"},
      {{.device_count = 0}, "there is no CUDA device on this machine"},
  };
  for (const Case& c : cases) {
    cuda_emulation::set_settings(c.settings);
    const auto problem = runtime::cuda::find_problem();
    REQUIRE(problem);
    CHECK(problem->code() == ErrorCode::kEnvironment);
    CHECK(problem->message() == c.message);
    CHECK(caught([] { runtime::cuda::count_devices(); }).message() == c.message);
  }
  // A driver of the same major version will do.
  cuda_emulation::set_settings({.driver_version = 13000, .runtime_version = 13010});
  CHECK_FALSE(runtime::cuda::find_problem());
  cuda_emulation::set_settings({});
}

TEST_CASE("cuda emulation: what a device cannot do is refused before weights are read") {
  const auto model = reshard::open_model(test::golden("families/llama"));
  const auto refusal = [&](const reshard::Model& of, const EngineOptions& options) {
    return caught([&] { Engine(of, options); });
  };
  EngineOptions options = on(Device::kCuda);
  Error error = refusal(model, options);
  CHECK(error.code() == ErrorCode::kUsage);
  CHECK(error.message().find("is F32, and the device computes with FP16 and BF16") !=
        std::string::npos);
  options.dtype = DType::F32;
  CHECK(refusal(model, options).code() == ErrorCode::kUsage);
  options.dtype = DType::F16;
  options.kv_dtype = DType::BF16;
  CHECK(refusal(model, options).where() == "--kv-dtype");
  options.kv_dtype = DType::F16;
  CHECK_NOTHROW(Engine(model, options));

  options.tp = 2;
  options.share_device = false;
  error = refusal(model, options);
  CHECK(error.code() == ErrorCode::kEnvironment);
  CHECK(error.message() == "2 ranks need as many devices, and there is 1");
  cuda_emulation::set_settings({.device_count = 2});
  CHECK_NOTHROW(Engine(model, options));
  cuda_emulation::set_settings({});

  options = on(Device::kCuda);
  options.dtype = DType::F16;
  const auto yuan = reshard::open_model(test::golden("families/yuan"));
  CHECK(refusal(yuan, options).code() == ErrorCode::kUsage);
  cuda_emulation::set_settings({.memory_bytes = size_t{20} << 20});
  error = refusal(model, options);
  CHECK(error.code() == ErrorCode::kEnvironment);
  CHECK(error.where() == "cuda device 0");
  CHECK(error.message().find("20 of 20 MiB are free") != std::string::npos);
  cuda_emulation::set_settings({});
  CHECK(cuda_emulation::bytes_in_use() == 0);
}

TEST_CASE("cuda emulation: ranks on devices of their own have the bits of one device") {
  const auto model = reshard::open_model(test::source_root() / "samples" / "llama-stories");
  const std::vector<int32_t> ids = some_ids(20);
  const std::vector<float> want = Engine(model, on(Device::kCuda)).prompt_logits(ids);
  cuda_emulation::set_settings({.device_count = 4});
  EngineOptions options = on(Device::kCuda, 2, 2);
  options.share_device = false;
  const std::vector<float> got = Engine(model, options).prompt_logits(ids);
  CHECK(std::memcmp(got.data(), want.data(), got.size() * sizeof(float)) == 0);
  cuda_emulation::set_settings({});
}

TEST_CASE("cuda emulation: no more is held than was counted before loading") {
  const auto model = reshard::open_model(test::source_root() / "samples" / "llama-stories");
  const size_t before = cuda_emulation::bytes_in_use();
  const Engine engine(model, on(Device::kCuda));
  const runtime::RankPlace place = runtime::place_of_rank(model.config(), 1, 1, 0);
  const size_t held = cuda_emulation::bytes_in_use() - before;
  const uint64_t weights = runtime::cuda::device_weight_bytes(model.config(), place);
  CHECK(held > weights);
  CHECK(held <= weights + runtime::cuda::device_scratch_bytes(model.config(), place, 512));
}
