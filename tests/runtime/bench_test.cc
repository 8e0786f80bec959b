#include "runtime/bench.h"

#include <doctest/doctest.h>

#include <numeric>

#include "cli/bench_report.h"
#include "formats/core/error.h"
#include "reshard/geometries.h"
#include "reshard/model.h"
#include "tests/support/test_data.h"

using namespace llmctl;
using namespace llmctl::runtime;

namespace {

reshard::Model sample() {
  return reshard::open_model(test::source_root() / "samples" / "llama-stories");
}

cli::BenchReport some_report() {
  cli::BenchReport report;
  report.version = "1.2.3";
  report.model = "a <model> & \"more\"";
  report.dtype = "BF16";
  report.threads = 2;
  report.pass_bytes = 1000;
  report.flops_per_token = 1000;
  report.memory_bytes_per_second = 30e9;
  report.peak_flops = 300e9;
  report.machine.cpu = "some CPU";
  for (const int64_t batch : {1, 2, 4}) {
    BenchRow row;
    row.what = {batch, 128, 8};
    const auto b = static_cast<double>(batch);
    row.first_token_ms = {10 * b, 11 * b, 12 * b};
    row.per_token_ms = {2, 2.5, 3};
    row.end_to_end_ms = {20 * b, 21 * b, 22 * b};
    row.prefill_tokens_per_second = 500;
    row.decode_tokens_per_second = 400 * b;
    row.decode_bytes_per_second = 27e9;
    row.memory_bytes_per_second = 30e9;
    report.rows.push_back(row);
  }
  return report;
}

}  // namespace

TEST_CASE("bench: percentiles are by nearest rank") {
  std::vector<double> values(100);
  std::iota(values.begin(), values.end(), 1.0);
  const Percentiles p = percentiles(values);
  CHECK(p.p50 == 50);
  CHECK(p.p90 == 90);
  CHECK(p.p99 == 99);
  CHECK(percentiles({3, 1, 2}).p50 == 2);
  CHECK(percentiles({3, 1, 2}).p99 == 3);
  CHECK(percentiles({}).p50 == 0);
}

TEST_CASE("bench: a pass reads every matrix once and a tied embedding as the head") {
  // 8 layers, hidden 128, 8 heads of 16, 4 of them for keys and values, ffn 352, vocabulary 2048.
  const uint64_t layer = 128 * 128 * 2 + 2 * 64 * 128 + 3 * 352 * 128;
  const uint64_t matrices = 8 * layer + 2048 * 128, vectors = 17 * 128;
  CHECK(bytes_per_pass(sample(), std::nullopt) == 2 * matrices + 4 * vectors);
  CHECK(bytes_per_pass(sample(), DType::F32) == 4 * matrices + 4 * vectors);
  CHECK(flops_per_token(sample()) == 2.0 * static_cast<double>(matrices));

  // With a head of its own the embedding is only looked up.
  const reshard::Family& family = *reshard::find_family_by_name("llama");
  const ModelConfig config = reshard::make_config(
      family, nullptr,
      {"num_hidden_layers=1", "hidden_size=32", "num_attention_heads=4", "intermediate_size=64",
       "vocab_size=100", "max_position_embeddings=64", "tie_word_embeddings=false"});
  const reshard::Model model = reshard::describe_model(family, config, DType::F16, "seed 1");
  CHECK(bytes_per_pass(model, std::nullopt) ==
        2 * (4 * 32 * 32 + 3 * 64 * 32 + 100 * 32) + 4 * 3 * 32);
}

TEST_CASE("bench: random weights of a described model run") {
  const reshard::Family& family = *reshard::find_family_by_name("llama");
  const ModelConfig config = reshard::make_config(
      family, nullptr,
      {"num_hidden_layers=2", "hidden_size=64", "num_attention_heads=4", "intermediate_size=96",
       "vocab_size=100", "max_position_embeddings=64"});
  const auto ids = [&](const char* origin, int tp) {
    EngineOptions options;
    options.tp = tp;
    options.threads = 1;
    Engine engine(reshard::describe_model(family, config, DType::BF16, origin), options);
    GenerateRequest request;
    request.prompt_ids = {1, 2, 3};
    request.max_new_tokens = 8;
    return engine.generate({&request, 1}).results.at(0).ids;
  };
  const std::vector<int32_t> first = ids("seed 1", 1);
  CHECK(first.size() == 8);
  CHECK(ids("seed 1", 2) == first);
  CHECK(ids("seed 2", 1) != first);
}

TEST_CASE("bench: a row has all that it says and asks no more tokens than that") {
  EngineOptions options;
  options.threads = 1;
  Engine engine(sample(), options);
  ThreadPool pool(1);
  MemoryProbe probe(size_t{4} << 20);
  int rounds = 0;
  const BenchRow row =
      measure_case(engine, {3, 5, 4}, {1, 2, 7}, 1000, probe, pool, [&] { ++rounds; });
  CHECK(rounds == 3);
  CHECK(row.first_token_ms.p50 > 0);
  CHECK(row.per_token_ms.p50 > 0);
  CHECK(row.end_to_end_ms.p50 >= row.first_token_ms.p50);
  CHECK(row.end_to_end_ms.p99 >= row.end_to_end_ms.p50);
  CHECK(row.prefill_tokens_per_second > 0);
  CHECK(row.decode_tokens_per_second > 0);
  CHECK(row.memory_bytes_per_second > 0);
  CHECK(row.memory_fraction() > 0);
  // One token each: there is no decoding.
  const BenchRow prefill = measure_case(engine, {2, 5, 1}, {0, 1, 7}, 1000, probe, pool);
  CHECK(prefill.decode_tokens_per_second == 0);
  CHECK(prefill.memory_fraction() == 0);
}

TEST_CASE("bench: the probe reads no faster than memory could and not nothing") {
  ThreadPool pool(1);
  MemoryProbe probe(size_t{64} << 20);
  const double rate = probe.read_once(pool);
  CHECK(rate > 1e8);
  CHECK(rate < 1e13);
  CHECK(measure_flops(pool) > 1e8);
}

TEST_CASE("bench: what json prints is read again and compared row by row") {
  const cli::BenchReport report = some_report();
  const cli::BenchReport again = cli::parse_bench(cli::bench_json(report).dump(), "memory");
  REQUIRE(again.rows.size() == 3);
  CHECK(again.rows[2].what.batch_size == 4);
  CHECK(again.rows[2].end_to_end_ms.p99 == 88);
  cli::BenchReport faster = report;
  faster.rows.erase(faster.rows.begin());
  for (BenchRow& row : faster.rows) row.decode_tokens_per_second *= 1.25;
  const std::string text = cli::compare_benches(report, faster);
  CHECK(text.find("+25.0 %") != std::string::npos);
  CHECK(std::count(text.begin(), text.end(), '\n') == 2 + 1 + 1 + 2);
  faster.rows[0].what.input_len = faster.rows[1].what.input_len = 7;
  CHECK_THROWS_AS(cli::compare_benches(report, faster), Error);
}

TEST_CASE("bench: damaged results are refused") {
  const std::string text = cli::bench_json(some_report()).dump(2);
  for (size_t length = 0; length + 1 < text.size(); length += 7) {
    CHECK_THROWS_AS(cli::parse_bench(text.substr(0, length), "memory"), Error);
  }
  CHECK_THROWS_AS(cli::parse_bench("{}", "memory"), Error);
  CHECK_THROWS_AS(cli::parse_bench("[]", "memory"), Error);
}

TEST_CASE("bench: the page stands alone and escapes names") {
  const std::string page = cli::bench_html(some_report());
  CHECK(page.find("<script") == std::string::npos);
  CHECK(page.find("http") == std::string::npos);
  CHECK(page.find("src=") == std::string::npos);
  CHECK(page.find("nan") == std::string::npos);
  CHECK(page.find("inf") == std::string::npos);
  CHECK(page.find("a &lt;model&gt; &amp; &quot;more&quot;") != std::string::npos);
  CHECK(page.find("<model>") == std::string::npos);
  size_t charts = 0;
  for (size_t at = 0; (at = page.find("<svg", at)) != std::string::npos; ++at) ++charts;
  CHECK(charts == 2);
}
