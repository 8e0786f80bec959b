// The steady loop of a generation takes no memory: every operator new of the test program is
// counted.
#include <doctest/doctest.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <vector>

#include "reshard/model.h"
#include "runtime/engine.h"
#include "tests/support/test_data.h"

using namespace llmctl;
using runtime::GenerateRequest;

namespace {
std::atomic<int64_t> allocations{0};
}

// A sanitizer has operators of its own that see more.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

void* operator new(size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size > 0 ? size : 1)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

TEST_CASE("engine: a token costs no allocation") {
  const auto model = reshard::open_model(test::golden("families/llama"));
  const auto request = [](std::vector<int32_t> prompt) {
    GenerateRequest r;
    r.prompt_ids = std::move(prompt);
    r.max_new_tokens = 90;
    return r;
  };
  for (const int pp : {1, 2}) {
    CAPTURE(pp);
    runtime::EngineOptions options;
    options.tp = 2;
    options.pp = pp;
    // One a rank: a worker takes its scratch when it first gets a piece, whenever that is.
    options.threads = 2 * pp;
    runtime::Engine engine(model, options);
    auto drawn = request({9, 8});
    drawn.sampling = {.temperature = 1, .top_k = 20, .top_p = 0.9, .min_p = 0.01, .typical_p = 0.9};
    drawn.rules.repetition_penalty = 1.2;
    drawn.rules.frequency_penalty = 0.1;
    drawn.rules.bad_words = {{5}, {6, 7}};
    drawn.num_logprobs = 4;
    auto several = request({4, 4, 4});
    several.sampling.temperature = 1;
    several.num_sequences = 3;
    auto beams = request({3, 2, 1});
    beams.beams.num_beams = 3;
    const std::vector<GenerateRequest> batch = {request({5, 6, 7}), drawn, several, beams};
    std::vector<int64_t> counts;
    counts.reserve(200);
    engine.generate(batch, [&](size_t i, int32_t) {
      if (i == 0) counts.push_back(allocations.load());
    });
    REQUIRE(counts.size() == 90);
    CHECK(counts[85] - counts[20] == 0);
  }
}

#endif
