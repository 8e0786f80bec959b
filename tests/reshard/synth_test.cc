#include "reshard/synth.h"

#include <doctest/doctest.h>

#include <cmath>
#include <fstream>
#include <iterator>
#include <map>
#include <vector>

#include "formats/core/error.h"
#include "reshard/compare.h"
#include "reshard/convert.h"
#include "reshard/geometries.h"
#include "reshard/random_weights.h"
#include "tests/support/temp_dir.h"

using namespace llmctl;
using namespace llmctl::reshard;
namespace fs = std::filesystem;

namespace {

ModelConfig tiny_config(const Family& family, const std::vector<std::string>& more = {}) {
  std::vector<std::string> settings = {
      "num_hidden_layers=3",   "hidden_size=32", "num_attention_heads=4",
      "num_key_value_heads=4", "head_dim=8",     "intermediate_size=128",
      "vocab_size=50"};
  if (family.name == "llama") settings[3] = "num_key_value_heads=2";
  if (family.name == "gptj") settings.emplace_back("rotary_dim=4");
  if (family.name == "gpt_neox") settings.emplace_back("rotary_dim=2");
  // BLOOM's config.json has no limit of positions.
  if (family.name != "bloom") settings.emplace_back("max_position_embeddings=24");
  settings.insert(settings.end(), more.begin(), more.end());
  return make_config(family, nullptr, settings);
}

ConvertOptions synth_options(const Family& family, const fs::path& destination) {
  ConvertOptions options;
  options.source = "same-name";
  options.destination = destination;
  options.format = "hf";
  SynthSource& synth = options.synth.emplace();
  synth.family = &family;
  synth.config = tiny_config(family);
  synth.dtype = DType::BF16;
  synth.seed = 5;
  return options;
}

std::map<std::string, std::string> bytes_of(const fs::path& directory) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(directory)) {
    // A manifest names the source.
    if (!entry.is_regular_file() || entry.path().filename() == kManifestName) continue;
    std::ifstream stream(entry.path(), std::ios::binary);
    files[entry.path().lexically_relative(directory).string()] = {
        std::istreambuf_iterator<char>(stream), {}};
  }
  return files;
}

}  // namespace

TEST_CASE("random weights: a part has the values that the whole has there") {
  const RandomTensor tensor(3, "layers.1.q");
  std::vector<float> whole(3000);
  tensor.fill(0, whole);
  for (const int64_t first : {0, 1, 2, 511, 512, 513, 1025}) {
    for (const size_t count : {1, 2, 3, 511, 512, 1030}) {
      CAPTURE(first);
      CAPTURE(count);
      std::vector<float> part(count);
      tensor.fill(first, part);
      CHECK(std::equal(part.begin(), part.end(), whole.begin() + first));
    }
  }
}

TEST_CASE("random weights: seed and key and index alone decide") {
  // By an independent program (tests/interop/synth_test.py has it): a change of these values
  // changes every checkpoint that a seed names.
  std::vector<float> values(4);
  RandomTensor(0, "embed").fill(0, values);
  CHECK(values == std::vector<float>{-0x1.1400000000000p-7F, 0x1.17ae140000000p-9F,
                                     0x1.70c28e0000000p-5F, 0x1.0970a40000000p-7F});
  RandomTensor(7, "layers.83.norm2").fill(int64_t{1} << 40, values);
  CHECK(values == std::vector<float>{0x1.00bb400000000p+0F, 0x1.f2cb800000000p-1F,
                                     0x1.03c5c00000000p+0F, 0x1.07bfc00000000p+0F});
}

TEST_CASE("random weights: look like an initialiser's") {
  std::vector<float> values(100000), other(100000);
  RandomTensor(1, "layers.0.up").fill(0, values);
  RandomTensor(2, "layers.0.up").fill(0, other);
  double sum = 0, squares = 0, product = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    sum += values[i];
    squares += static_cast<double>(values[i]) * values[i];
    product += static_cast<double>(values[i]) * other[i];
    REQUIRE(values[i] != 0.0F);
  }
  const double n = static_cast<double>(values.size());
  CHECK(std::abs(sum / n) < 3e-4);
  CHECK(std::sqrt(squares / n) == doctest::Approx(0.02).epsilon(0.01));
  CHECK(std::abs(product / squares) < 0.02);
  RandomTensor(1, "layers.0.norm1").fill(0, values);
  for (const float value : values) REQUIRE(std::abs(value - 1) < 0.05F);
}

TEST_CASE("synth: one seed gives the same weights in every format and layout") {
  for (const Family& family : family_table()) {
    CAPTURE(family.name);
    test::TempDir dir;
    ConvertOptions options = synth_options(family, dir / "hf");
    Conversion(options).run();
    const std::string digest_of_hf = digest(open_model(dir / "hf"), 1).digest;
    for (const int64_t tp : {1, 2, 4}) {
      CAPTURE(tp);
      const std::string gpus = std::to_string(tp) + "-gpu";
      ConvertOptions direct = options;
      direct.format = "ft";
      direct.tp = tp;
      direct.jobs = 3;
      direct.destination = dir / "direct";
      ConvertOptions converted;
      converted.source = dir / "hf";
      converted.destination = dir / "converted";
      converted.format = "ft";
      converted.tp = tp;
      converted.model_name = "same-name";
      bool possible = true;
      try {
        Conversion(converted).run();
      } catch (const Error&) {
        possible = false;  // FasterTransformer has no place for the model
      }
      if (!possible) {
        CHECK_THROWS_AS(Conversion(direct).run(), Error);
        continue;
      }
      Conversion(direct).run();
      CHECK(bytes_of(dir / "direct" / gpus) == bytes_of(dir / "converted" / gpus));
      CHECK(digest(open_model(dir / "direct" / gpus), 1).digest == digest_of_hf);
    }
  }
}

TEST_CASE("synth: one Megatron layout is the other one resharded") {
  for (const std::string name : {"gpt2", "llama", "bloom"}) {
    CAPTURE(name);
    test::TempDir dir;
    const Family& family = *find_family_by_name(name);
    ConvertOptions options = synth_options(family, dir / "one");
    // Rows that every size below divides: Megatron's padding grows with it.
    options.synth->config = tiny_config(family, {"vocab_size=256"});
    options.format = "megatron";
    Conversion(options).run();
    options.destination = dir / "direct";
    options.tp = 2;
    options.pp = 2;
    options.pipeline_blocks = {1, 2};
    options.jobs = 2;
    Conversion(options).run();
    ConvertOptions reshard = options;
    reshard.synth.reset();
    reshard.source = dir / "one";
    reshard.destination = dir / "resharded";
    Conversion(reshard).run();
    const auto direct = bytes_of(dir / "direct");
    CHECK(direct.size() == 5);
    CHECK(direct == bytes_of(dir / "resharded"));
  }
}

TEST_CASE("plan: a rank of nothing but padding has the dtype of the others") {
  test::TempDir dir;
  ConvertOptions options = synth_options(*find_family_by_name("gpt2"), dir / "out");
  options.format = "megatron";
  options.tp = 4;  // 512 rows for a vocabulary of 50
  const Conversion conversion(options);
  for (const PlannedTensor& tensor : conversion.plan().tensors) {
    CAPTURE(tensor.target.name);
    CHECK(tensor.target.dtype == DType::BF16);
  }
}

TEST_CASE("synth: another seed gives other weights and jobs change nothing") {
  test::TempDir dir;
  const Family& family = *find_family_by_name("llama");
  ConvertOptions options = synth_options(family, dir / "a");
  Conversion(options).run();
  options.destination = dir / "b";
  options.jobs = 4;
  Conversion(options).run();
  CHECK(bytes_of(dir / "a") == bytes_of(dir / "b"));
  options.destination = dir / "c";
  options.synth->seed = 6;
  Conversion(options).run();
  CHECK(digest(open_model(dir / "a"), 1).digest != digest(open_model(dir / "c"), 1).digest);
}

TEST_CASE("synth: sparse files have the headers and the sizes of full ones") {
  test::TempDir dir;
  const Family& family = *find_family_by_name("bloom");
  ConvertOptions options = synth_options(family, dir / "full");
  Conversion(options).run();
  options.destination = dir / "sparse";
  options.synth->sparse = true;
  Conversion(options).run();
  const auto full = bytes_of(dir / "full"), sparse = bytes_of(dir / "sparse");
  REQUIRE(full.size() == sparse.size());
  for (const auto& [name, bytes] : full) {
    CAPTURE(name);
    REQUIRE(sparse.count(name) == 1);
    CHECK(sparse.at(name).size() == bytes.size());
  }
  CHECK(full.at("config.json") == sparse.at("config.json"));
  const Model model = open_model(dir / "sparse");
  std::vector<float> row(32);
  read_canonical_rows(model, "embed", 0, 1, row);
  CHECK(row == std::vector<float>(32, 0.0F));
}

TEST_CASE("geometries: every row is a model of its family") {
  for (const ModelGeometry& geometry : geometry_table()) {
    CAPTURE(geometry.name);
    const Family* family = find_family_by_name(geometry.family);
    REQUIRE(family != nullptr);
    const ModelConfig config = make_config(*family, &geometry, {});
    CHECK_FALSE(describe_model(*family, config, geometry.dtype, "").keys().empty());
  }
}

TEST_CASE("geometries: settings that a family cannot have are refused") {
  const Family& gpt2 = *find_family_by_name("gpt2");
  for (const std::string setting :
       {"gated_mlp=true", "num_hiden_layers=4", "num_hidden_layers", "num_hidden_layers=0",
        "num_hidden_layers=four", "num_attention_heads=5", "norm=rms_norm"}) {
    CAPTURE(setting);
    try {
      make_config(gpt2, find_geometry("gpt2"), {setting});
      FAIL("accepted");
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kUsage);
    }
  }
  CHECK(make_config(gpt2, find_geometry("gpt2"), {"num_hidden_layers=4"}).num_hidden_layers == 4);
}
