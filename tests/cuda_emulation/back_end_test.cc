// The CUDA back end on machines that a test can change; tests/gpu/back_end_test.cc has the rest.
#include <doctest/doctest.h>

#include <cstring>
#include <string>
#include <vector>

#include "formats/core/error.h"
#include "reshard/model.h"
#include "runtime/cuda/back_end.h"
#include "runtime/cuda/decoder.h"
#include "runtime/engine.h"
#include "tests/cuda_emulation/control.h"
#include "tests/gpu/back_end_support.h"
#include "tests/support/test_data.h"

using namespace llmctl;
using namespace llmctl::test;

namespace {

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

  cuda_emulation::set_settings({.compute_major = 8});
  options.tp = 1;
  error = refusal(model, options);
  CHECK(error.code() == ErrorCode::kEnvironment);
  CHECK(error.message() == "has compute capability 8.0, for which this llmctl has no code");
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
