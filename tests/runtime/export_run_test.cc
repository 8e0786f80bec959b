// Running from an export: the same output as from the source, from weights that are mapped.
#include <doctest/doctest.h>

#include <filesystem>

#include "formats/core/error.h"
#include "reshard/convert.h"
#include "reshard/load.h"
#include "reshard/model.h"
#include "runtime/engine.h"
#include "runtime/layout.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"

using namespace llmctl;
using namespace llmctl::runtime;
namespace fs = std::filesystem;

namespace {

using Layout = formats::MatrixLayout;

void write_export(const fs::path& source, const fs::path& target, int tp, int pp,
                  std::optional<DType> dtype = {}, Layout layout = Layout::kPanels16,
                  bool compress = false) {
  reshard::ConvertOptions options;
  options.source = source;
  options.destination = target;
  options.format = "export";
  options.tp = tp;
  options.pp = pp;
  options.dtype = dtype;
  options.matrix_layout = layout;
  options.compress = compress;
  reshard::Conversion(options).run();
}

std::vector<int32_t> generate(const fs::path& path, int tp, int pp,
                              std::optional<DType> dtype = {}) {
  EngineOptions options;
  options.tp = tp;
  options.pp = pp;
  options.threads = 1;
  options.dtype = dtype;
  Engine engine(reshard::open_model(path), options);
  GenerateRequest request;
  request.prompt_ids = {1, 5, 9, 17};
  request.max_new_tokens = 8;
  return engine.generate({&request, 1}).results.at(0).ids;
}

/// Bytes of a rank's weights that are mapped and that are not.
std::pair<uint64_t, uint64_t> loaded(const fs::path& path, int tp, int pp, int rank,
                                     std::optional<DType> dtype = {}) {
  const reshard::Model model = reshard::open_model(path);
  const RankPlace place = place_of_rank(model.config(), tp, pp, rank);
  ThreadPool pool(1);
  const reshard::RankWeights weights =
      reshard::load_rank(model, weight_layout(model.config(), place),
                         {tp, place.tp_rank, place.first_layer, place.end_layer}, dtype, pool);
  return {weights.mapped_bytes(), weights.total_bytes() - weights.mapped_bytes()};
}

fs::path sample() { return test::source_root() / "samples" / "llama-stories"; }

}  // namespace

TEST_CASE("export run: ids are those of the source on every grid from every export") {
  const std::vector<int32_t> want = generate(sample(), 1, 1);
  const test::TempDir dir;
  write_export(sample(), dir / "whole", 1, 1);
  write_export(sample(), dir / "cut", 2, 2);
  write_export(sample(), dir / "rows", 2, 1, {}, Layout::kRows);
  write_export(sample(), dir / "zstd", 2, 2, {}, Layout::kPanels16, true);
  for (const char* name : {"whole", "cut", "rows", "zstd"}) {
    CAPTURE(name);
    for (const auto& [tp, pp] : {std::pair{1, 1}, {2, 1}, {1, 2}, {2, 2}, {4, 1}, {8, 2}}) {
      CAPTURE(tp);
      CAPTURE(pp);
      CHECK(generate(dir / name, tp, pp) == want);
    }
    CHECK(generate(dir / name, 2, 2, DType::F32) == want);
  }
}

TEST_CASE("export run: every family runs from its export as from its source") {
  for (const auto& entry : fs::directory_iterator(test::golden("families"))) {
    if (!fs::exists(entry.path() / "config.json")) continue;
    CAPTURE(entry.path().filename().string());
    const std::vector<int32_t> want = generate(entry.path(), 1, 1);
    const test::TempDir dir;
    write_export(entry.path(), dir / "out", 1, 1);
    CHECK(generate(dir / "out", 1, 1) == want);
  }
}

TEST_CASE("export run: at its own sizes nothing is copied") {
  const test::TempDir dir;
  write_export(sample(), dir / "cut", 2, 2);
  for (int rank = 0; rank < 4; ++rank) {
    CAPTURE(rank);
    const auto [mapped, copied] = loaded(dir / "cut", 2, 2, rank);
    CHECK(mapped > 900000);
    CHECK(copied == 0);
  }
  // Other stages hold the same layers' tensors.
  CHECK(loaded(dir / "cut", 2, 1, 1).second == 0);
}

TEST_CASE("export run: what would have to change is read instead") {
  const test::TempDir dir;
  write_export(sample(), dir / "cut", 2, 1);
  CHECK(loaded(dir / "cut", 1, 1, 0).second > 1000000);
  CHECK(loaded(dir / "cut", 2, 1, 0, DType::F32).second > 1000000);
  write_export(sample(), dir / "rows", 2, 1, {}, Layout::kRows);
  CHECK(loaded(dir / "rows", 2, 1, 0).first == 0);
  write_export(sample(), dir / "zstd", 2, 1, {}, Layout::kPanels16, true);
  CHECK(loaded(dir / "zstd", 2, 1, 0).first == 0);
  CHECK(loaded(sample(), 1, 1, 0).first == 0);
}

TEST_CASE("export run: an export in another dtype runs as run casts") {
  const test::TempDir dir;
  const fs::path source = test::golden("families") / "llama";
  for (const DType dtype : {DType::F16, DType::BF16, DType::F32}) {
    const fs::path out = dir / std::string(dtype_name(dtype));
    write_export(source, out, 2, 1, dtype);
    CHECK(generate(out, 2, 1) == generate(source, 2, 1, dtype));
    CHECK(loaded(out, 2, 1, 0).second == 0);
  }
}
