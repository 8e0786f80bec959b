// OPT-350m has its embedding and head in factors that FasterTransformer's trees hold multiplied
// out: diff and digest see through that.
#include <doctest/doctest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <vector>

#include "formats/core/error.h"
#include "formats/core/file.h"
#include "formats/json.h"
#include "kernels/convert.h"
#include "reshard/compare.h"
#include "reshard/convert.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"

using namespace llmctl;
using namespace llmctl::reshard;
namespace fs = std::filesystem;

namespace {

void convert(const fs::path& source, const fs::path& destination, const std::string& format,
             DType dtype, int64_t tp = 1) {
  ConvertOptions options;
  options.source = source;
  options.destination = destination;
  options.format = format;
  options.dtype = dtype;
  if (format == "ft") options.tp = tp;
  options.jobs = 2;
  Conversion(options).run();
}

std::string digest_of(const fs::path& path) { return digest(open_model(path), 2).digest; }

/// In both directions; the answers must agree.
ModelDiff compare(const fs::path& a, const fs::path& b, const DiffOptions& options = {}) {
  const Model first = open_model(a), second = open_model(b);
  const ModelDiff there = diff(first, second, options), back = diff(second, first, options);
  CHECK(there.differences.size() == back.differences.size());
  CHECK(there.num_tensors == back.num_tensors);
  CHECK(there.num_rounded == back.num_rounded);
  return there;
}

/// Changes the bytes of a file in place.
void edit(const fs::path& path, const std::function<void(std::string&)>& change) {
  std::string bytes = read_text_file(path, 1 << 24);
  change(bytes);
  std::ofstream(path, std::ios::binary) << bytes;
}

/// Calls `change` with the F32 values of one tensor of a safetensors file.
void edit_tensor(const fs::path& path, const std::string& name,
                 const std::function<void(std::vector<float>&)>& change) {
  edit(path, [&](std::string& bytes) {
    uint64_t header_size = 0;
    std::memcpy(&header_size, bytes.data(), 8);
    const auto header = formats::parse_json(bytes.substr(8, header_size), "header");
    const size_t begin = 8 + header_size + header[name]["data_offsets"][0].get<size_t>();
    const size_t end = 8 + header_size + header[name]["data_offsets"][1].get<size_t>();
    std::vector<float> values((end - begin) / sizeof(float));
    std::memcpy(values.data(), bytes.data() + begin, end - begin);
    change(values);
    std::memcpy(bytes.data() + begin, values.data(), end - begin);
  });
}

constexpr const char* kEmbedding = "model.decoder.embed_tokens.weight";

const fs::path& source() {
  static const fs::path path = test::golden("families/opt-350m");
  return path;
}

}  // namespace

TEST_CASE("products: diff finds the trees of FasterTransformer's script to be the model") {
  for (const std::string dtype : {"fp32", "fp16"}) {
    CAPTURE(dtype);
    test::TempDir dir;
    convert(source(), dir / "ft", "ft", find_dtype(dtype).value(), 2);
    for (const std::string name : {"model.wte.bin", "model.lm_head.weight.bin"}) {
      fs::copy_file(test::golden("ft/opt-350m") / (dtype + "." + name), dir / "ft/2-gpu" / name,
                    fs::copy_options::overwrite_existing);
    }
    const ModelDiff difference = compare(source(), dir / "ft");
    CHECK(difference.differences.empty());
    CHECK(difference.num_rounded >= 2);
    // Summed in another order: the script's F32 products differ in their last bits.
    if (dtype == "fp32") {
      const ModelDiff exact = compare(source(), dir / "ft", {.exact = true});
      REQUIRE(exact.differences.size() == 2);
      CHECK(exact.differences[0].key == "embed");
      CHECK(exact.differences[1].key == "head");
      CHECK(exact.differences[0].max_abs < 2e-6);
    }
  }
}

TEST_CASE("products: what convert writes is the product rounded once to the dtype") {
  for (const DType dtype : {DType::F32, DType::F16, DType::BF16}) {
    CAPTURE(dtype_name(dtype));
    test::TempDir dir;
    convert(source(), dir / "narrow", "hf", dtype);
    convert(dir / "narrow", dir / "ft", "ft", dtype);
    const ModelDiff difference = compare(dir / "narrow", dir / "ft", {.exact = true});
    CHECK(difference.differences.empty());
    CHECK(difference.num_rounded == (dtype == DType::F32 ? 0 : 2));
    // And so the fingerprints agree, the widened model's too.
    CHECK(digest_of(dir / "ft") == digest_of(dir / "narrow"));
    convert(dir / "narrow", dir / "wide", "hf", DType::F32);
    CHECK(digest_of(dir / "wide") == digest_of(dir / "narrow"));
    // A tree in F32 of a narrower model has more digits of the products.
    if (dtype == DType::F32) continue;
    convert(dir / "narrow", dir / "ft32", "ft", DType::F32);
    CHECK(digest_of(dir / "ft32") != digest_of(dir / "narrow"));
    CHECK(compare(dir / "narrow", dir / "ft32", {.exact = true}).differences.empty());
    CHECK(compare(dir / "ft", dir / "ft32").differences.empty());
  }
}

TEST_CASE("products: a model that went to FasterTransformer and back is still the same") {
  test::TempDir dir;
  convert(source(), dir / "ft", "ft", DType::F32, 2);
  convert(dir / "ft", dir / "hf", "hf", DType::F32);
  CHECK(compare(source(), dir / "hf", {.exact = true}).differences.empty());
  CHECK(digest_of(dir / "hf") == digest_of(source()));
}

TEST_CASE("products: a change beyond rounding is a difference on either side") {
  test::TempDir dir;
  convert(source(), dir / "ft", "ft", DType::F16);
  const fs::path wte = dir / "ft/1-gpu/model.wte.bin";
  const auto set = [&](size_t at, const std::function<float(float)>& change) {
    edit(wte, [&](std::string& bytes) {
      uint16_t bits = 0;
      std::memcpy(&bits, bytes.data() + 2 * at, 2);
      bits = kernels::float_to_half(change(kernels::half_to_float(bits)));
      std::memcpy(bytes.data() + 2 * at, &bits, 2);
    });
  };
  set(100, [](float x) { return x * 1.01F; });
  const ModelDiff one = compare(source(), dir / "ft");
  REQUIRE(one.differences.size() == 1);
  CHECK(one.differences[0].key == "embed");
  CHECK(one.differences[0].kind == TensorDifference::Kind::kValues);
  CHECK(one.differences[0].num_different == 1);
  CHECK(compare(source(), dir / "ft", {.tolerance = 0.2}).differences.empty());
  set(101, [](float) { return std::numeric_limits<float>::quiet_NaN(); });
  CHECK(compare(source(), dir / "ft").differences.at(0).num_different == 2);

  // The head is made of the same left factor, so both notice; the rest of the model does not.
  fs::copy(source(), dir / "hf");
  edit_tensor(dir / "hf/model.safetensors", kEmbedding,
              [](std::vector<float>& values) { values[0] = -values[0]; });
  convert(source(), dir / "whole", "ft", DType::F16);
  const ModelDiff both = compare(dir / "hf", dir / "whole");
  REQUIRE(both.differences.size() == 2);
  CHECK(both.differences[0].num_different == 24);
  CHECK(both.differences[1].num_different == 24);
  CHECK(compare(source(), dir / "hf").differences.size() == 1);  // factors with factors
}

TEST_CASE("products: one that leaves the range of the dtype is counted or refused") {
  test::TempDir dir;
  fs::copy(source(), dir / "hf");
  // The factors still fit F16; the largest products are about 7 * 2^14.
  edit_tensor(dir / "hf/model.safetensors", kEmbedding, [](std::vector<float>& values) {
    for (float& value : values) value *= 0x1p14F;
  });
  ConvertOptions options;
  options.source = dir / "hf";
  options.destination = dir / "ft";
  options.format = "ft";
  options.tp = 1;
  options.dtype = DType::F16;
  options.on_overflow = OnOverflow::kError;
  CHECK_THROWS_WITH_AS(Conversion(options).run(), doctest::Contains("values do not fit F16"),
                       Error);
  CHECK(!fs::exists(dir / "ft"));
  options.on_overflow = OnOverflow::kInf;
  const auto result = Conversion(options).run();
  CHECK(result.overflows.size() == 2);
  CHECK(compare(dir / "hf", dir / "ft").differences.empty());  // infinity is what they round to
}
