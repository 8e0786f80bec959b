// Running quantised: the same bits from the source and from its exports on every grid.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "formats/core/error.h"
#include "reshard/convert.h"
#include "reshard/load.h"
#include "reshard/model.h"
#include "reshard/quantization.h"
#include "runtime/bench.h"
#include "runtime/engine.h"
#include "runtime/layout.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"

using namespace llmctl;
using namespace llmctl::runtime;
using kernels::Quantization;
namespace fs = std::filesystem;

namespace {

constexpr Quantization kInt8{8, 0}, kInt4{4, 32};

fs::path sample() { return test::source_root() / "samples" / "llama-stories"; }

void write(const fs::path& source, const fs::path& target, const std::string& format,
           std::optional<Quantization> quantization, int tp = 1, int pp = 1) {
  reshard::ConvertOptions options;
  options.source = source;
  options.destination = target;
  options.format = format;
  options.tp = tp;
  options.pp = pp;
  options.quantization = quantization;
  reshard::Conversion(options).run();
}

std::vector<float> logits(const fs::path& path, std::optional<Quantization> quantization,
                          int tp = 1, int pp = 1, int threads = 1, int64_t chunk = 512,
                          std::optional<DType> dtype = {}) {
  EngineOptions options;
  options.tp = tp;
  options.pp = pp;
  options.threads = threads;
  options.dtype = dtype;
  options.quantization = quantization;
  options.batch.chunk_tokens = chunk;
  Engine engine(reshard::open_model(path), options);
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 19; ++i) ids.push_back((i * i + 3) % 40);
  return engine.prompt_logits(ids);
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

TEST_CASE("quantized run: logits have the same bits on every grid from source and export") {
  const test::TempDir dir;
  for (const Quantization& q : {kInt8, kInt4}) {
    CAPTURE(q.bits);
    const std::vector<float> want = logits(sample(), q);
    CHECK_FALSE(same_bits(want, logits(sample(), {})));
    const fs::path whole = dir / ("whole" + std::to_string(q.bits));
    const fs::path cut = dir / ("cut" + std::to_string(q.bits));
    write(sample(), whole, "export", q);
    write(sample(), cut, "export", q, 2, 2);
    for (const auto& [tp, pp] : {std::pair{1, 1}, {2, 1}, {1, 2}, {2, 2}, {4, 1}, {8, 2}}) {
      CAPTURE(tp);
      CAPTURE(pp);
      CHECK(same_bits(logits(sample(), q, tp, pp), want));
      CHECK(same_bits(logits(whole, {}, tp, pp), want));
      CHECK(same_bits(logits(cut, q, tp, pp, 3), want));
    }
    // Prefill in any portions, a single token each at the last.
    for (const int64_t chunk : {1, 3, 16}) CHECK(same_bits(logits(cut, {}, 1, 1, 1, chunk), want));
  }
}

TEST_CASE("quantized run: every family computes with the values that the integers stand for") {
  for (const auto& entry : fs::directory_iterator(test::golden("families"))) {
    if (!fs::exists(entry.path() / "config.json")) continue;
    CAPTURE(entry.path().filename().string());
    const test::TempDir dir;
    write(entry.path(), dir / "int8", "export", kInt8);
    write(dir / "int8", dir / "plain", "export", Quantization{});
    const std::vector<float> got = logits(dir / "int8", {});
    const std::vector<float> want = logits(dir / "plain", {});
    CHECK(same_bits(got, logits(entry.path(), kInt8)));
    REQUIRE(got.size() == want.size());
    float worst = 0, low = want[0], high = want[0];
    for (size_t i = 0; i < want.size(); ++i) {
      worst = std::max(worst, std::fabs(got[i] - want[i]));
      low = std::min(low, want[i]);
      high = std::max(high, want[i]);
    }
    // Activations of 16 bits; random weights magnify what they round.
    CHECK(worst <= 2e-3F * (high - low));
    CHECK(worst > 0);
  }
}

TEST_CASE("quantized run: at its own sizes an export is mapped whole") {
  const test::TempDir dir;
  write(sample(), dir / "cut", "export", kInt4, 2, 2);
  const reshard::Model model = reshard::open_model(dir / "cut");
  ThreadPool pool(1);
  uint64_t pass_bytes = 0;
  for (int rank = 0; rank < 4; ++rank) {
    const RankPlace place = place_of_rank(model.config(), 2, 2, rank);
    const auto weights =
        reshard::load_rank(model, weight_layout(model.config(), place),
                           {2, place.tp_rank, place.first_layer, place.end_layer}, {}, pool);
    CHECK(weights.mapped_bytes() == weights.total_bytes());
    CHECK(weights.get("layers." + std::to_string(place.first_layer) + ".qkv").quantization ==
          kInt4);
    pass_bytes += weights.total_bytes();
  }
  // The embedding stands on both stages, vectors on both ranks.
  CHECK(bytes_per_pass(model, {}, kInt4) < pass_bytes);
  CHECK(bytes_per_pass(model, {}, kInt4) > pass_bytes / 2);
}

TEST_CASE("quantized run: what bench counts for a pass is what one rank holds") {
  const reshard::Model model = reshard::open_model(sample());
  ThreadPool pool(2);
  for (const Quantization& q : {Quantization{}, kInt8, kInt4}) {
    const auto weights = reshard::load_rank(
        model, weight_layout(model.config(), place_of_rank(model.config(), 1, 1, 0)),
        {1, 0, 0, model.config().num_hidden_layers}, {}, pool, q);
    CHECK(bytes_per_pass(model, {}, q) == weights.total_bytes());
  }
}

TEST_CASE("quantized run: a dtype applies to what is not quantised") {
  const test::TempDir dir;
  const std::vector<float> want = logits(sample(), kInt8);
  // BF16 embeddings as F32: the same values.
  CHECK(same_bits(logits(sample(), kInt8, 1, 1, 1, 512, DType::F32), want));
  write(sample(), dir / "out", "export", kInt8);
  CHECK(same_bits(logits(dir / "out", {}, 1, 1, 1, 512, DType::F32), want));
}

TEST_CASE("quantized run: what cannot be is refused before weights are read") {
  const test::TempDir dir;
  for (const auto& [q, part] : {std::pair{Quantization{4, 64}, "intermediate_size is 352"},
                                {Quantization{8, 20}, "no such groups"}}) {
    try {
      logits(sample(), q);
      FAIL("accepted");
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kUsage);
      CHECK(std::string(error.what()).find(part) != std::string::npos);
      CHECK(std::string(error.what()).find("rank ") == std::string::npos);
    }
  }
  write(sample(), dir / "int8", "export", kInt8);
  CHECK_THROWS_AS(logits(dir / "int8", kInt4), Error);
}
