// FasterTransformer trees against the digests of what its own converters wrote
// (tests/golden/ft/README.md says where those come from and where a right converter must differ).
#include <doctest/doctest.h>
#include <xxhash.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <vector>

#include "formats/core/file.h"
#include "formats/json.h"
#include "reshard/convert.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"

using namespace llmctl;
using namespace llmctl::reshard;
namespace fs = std::filesystem;

namespace {

std::string hex64(uint64_t value) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
  return text;
}

/// Names whose bytes must or may differ from the script's.
bool is_exempt(const std::string& model, const std::string& file) {
  // Products of two matrices: the last bits are the summation order's.
  if (model == "opt-350m") return file == "model.wte.bin" || file == "model.lm_head.weight.bin";
  // The script writes [hidden, vocab]; FasterTransformer reads [vocab, hidden].
  if (model == "bloom-untied") return file == "model.lm_head.weight.bin";
  return false;
}

/// Files that only the script, or only llmctl, rightly writes.
bool is_expected_extra(const std::string& model, const std::string& file, bool by_script) {
  if (file != "model.lm_head.weight.bin") return false;
  if (by_script) return model == "bloom-equal-head";
  return model == "gpt2-inner";  // the script loses an untied head
}

}  // namespace

TEST_CASE("convert: FasterTransformer trees equal those of its own converters byte for byte") {
  std::vector<fs::path> cases;
  for (const auto& entry : fs::directory_iterator(test::golden("ft"))) {
    if (entry.path().extension() == ".json") cases.push_back(entry.path());
  }
  std::sort(cases.begin(), cases.end());
  REQUIRE(cases.size() > 40);
  for (const fs::path& path : cases) {
    const auto golden = formats::parse_json(read_text_file(path, 1 << 22), path.string());
    const std::string model = golden["model"];
    const std::string name = path.filename().string();
    CAPTURE(name);
    test::TempDir dir;
    ConvertOptions options;
    options.source = test::golden("families/" + model);
    options.destination = dir / "out";
    options.format = "ft";
    options.tp = golden["tp"];
    options.dtype = find_dtype(golden["dtype"].get<std::string>());
    options.ft_exact = true;
    options.model_name = model;
    options.jobs = 2;
    Conversion(options).run();
    const fs::path out = dir / "out" / (std::to_string(options.tp) + "-gpu");
    CHECK(read_text_file(out / "config.ini", 1 << 16) == golden["config_ini"].get<std::string>());
    size_t written = 0;
    for (const auto& entry : fs::directory_iterator(out)) {
      const std::string file = entry.path().filename().string();
      CAPTURE(file);
      if (file == "config.ini") continue;
      ++written;
      if (!golden["files"].contains(file)) CHECK(is_expected_extra(model, file, false));
    }
    CHECK(written > 0);
    for (const auto& [file, expected] : golden["files"].items()) {
      CAPTURE(file);
      if (!fs::exists(out / file)) {
        CHECK(is_expected_extra(model, file, true));
        continue;
      }
      const std::string bytes = read_text_file(out / file, 1 << 24);
      CHECK(bytes.size() == expected[0].get<uint64_t>());
      if (is_exempt(model, file)) continue;
      CHECK(hex64(XXH3_64bits(bytes.data(), bytes.size())) == expected[2].get<std::string>());
    }
  }
}
