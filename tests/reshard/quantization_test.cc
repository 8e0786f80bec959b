// Quantised exports: what is in them, what becomes of it, and what is refused.
#include "reshard/quantization.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "formats/core/error.h"
#include "formats/file_decoder.h"
#include "kernels/quantized.h"
#include "reshard/compare.h"
#include "reshard/convert.h"
#include "reshard/manifest.h"
#include "reshard/model.h"
#include "reshard/panel_file.h"
#include "tests/support/bytes.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"

using namespace llmctl;
using namespace llmctl::reshard;
namespace fs = std::filesystem;

namespace {

using kernels::Quantization;

constexpr Quantization kInt8{8, 0}, kInt4{4, 32};

fs::path sample() { return test::source_root() / "samples" / "llama-stories"; }

ConvertOptions export_options(const fs::path& source, const fs::path& destination,
                              std::optional<Quantization> quantization, int tp = 1, int pp = 1) {
  ConvertOptions options;
  options.source = source;
  options.destination = destination;
  options.format = "export";
  options.tp = tp;
  options.pp = pp;
  options.quantization = quantization;
  return options;
}

ConvertSummary convert(const ConvertOptions& options) { return Conversion(options).run(); }

std::string digest_of(const fs::path& path) { return digest(open_model(path), 2).digest; }

/// The bytes of a rank's tensor as they lie in the file.
std::string stored_bytes(const fs::path& path, const std::string& name, int rank) {
  const formats::Checkpoint checkpoint = formats::read_export(path);
  for (const formats::StoredTensor& tensor : checkpoint.tensors) {
    if (tensor.name != name || tensor.tp_rank != rank) continue;
    std::string bytes(tensor.num_bytes(), '\0');
    formats::TensorFile(checkpoint.files[static_cast<size_t>(tensor.file)])
        .read_at(std::as_writable_bytes(std::span(bytes)), tensor.offset_bytes);
    return bytes;
  }
  FAIL("no tensor " << name);
  return {};
}

std::map<std::string, std::string> files_of(const fs::path& path) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(path)) {
    files[entry.path().filename().string()] = test::read_bytes(entry.path());
  }
  return files;
}

/// What `body` is refused with.
std::string refusal(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    CHECK(std::string(error.what()).find('\n') == std::string::npos);
    return error.what();
  }
  return "accepted";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

void edit(const fs::path& file, const std::string& from, const std::string& to) {
  std::string text = test::read_bytes(file);
  const size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  test::write_bytes(file, text.replace(at, from.size(), to));
}

}  // namespace

TEST_CASE("quantization: a rank's integers and scales are those rows of the whole matrix's") {
  const test::TempDir dir;
  for (const Quantization& q : {kInt8, kInt4, Quantization{4, 0}}) {
    CAPTURE(quantization_text(q));
    convert(export_options(sample(), dir / "one", q));
    convert(export_options(sample(), dir / "four", q, 4));
    const struct {
      const char* name;
      int64_t rows, columns;
    } matrices[] = {{"layers.3.o", 128, 128}, {"layers.7.down", 128, 352}};
    for (const auto& matrix : matrices) {
      const std::string whole = stored_bytes(dir / "one", matrix.name, 0);
      std::string parts;
      for (int rank = 0; rank < 4; ++rank) {
        parts += stored_bytes(dir / "four", matrix.name, rank);
      }
      // 32 rows a rank: panels, one behind the other.
      CHECK(parts == whole);
    }
    fs::remove_all(dir / "one");
    fs::remove_all(dir / "four");
  }
}

TEST_CASE("quantization: cut anew an export keeps its integers and scales") {
  const test::TempDir dir;
  for (const Quantization& q : {kInt8, kInt4}) {
    const std::string name = quantization_text(q);
    CAPTURE(name);
    convert(export_options(sample(), dir / (name + "1"), q));
    convert(export_options(sample(), dir / (name + "direct"), q, 4, 2));
    const ConvertSummary again =
        convert(export_options(dir / (name + "1"), dir / (name + "cut"), {}, 4, 2));
    CHECK(again.quantization_errors.empty());
    convert(export_options(dir / (name + "cut"), dir / (name + "back"), q));
    for (const char* tensor : {"layers.0.qkv", "layers.5.gate_up", "layers.7.down", "layers.2.o"}) {
      CAPTURE(tensor);
      for (int rank = 0; rank < 4; ++rank) {
        CHECK(stored_bytes(dir / (name + "cut"), tensor, rank) ==
              stored_bytes(dir / (name + "direct"), tensor, rank));
      }
      CHECK(stored_bytes(dir / (name + "back"), tensor, 0) ==
            stored_bytes(dir / (name + "1"), tensor, 0));
    }
    CHECK(digest_of(dir / (name + "cut")) == digest_of(dir / (name + "1")));
    CHECK(check_directory(dir / (name + "cut"), {}).faults.empty());
  }
}

TEST_CASE("quantization: files do not depend on jobs and memory") {
  const test::TempDir dir;
  std::map<std::string, std::string> first;
  for (const auto& [jobs, memory] : {std::pair{1, 512}, {3, 512}, {2, 1}}) {
    ConvertOptions options = export_options(sample(), dir / "out", kInt4, 2, 2);
    options.jobs = jobs;
    options.max_memory = static_cast<uint64_t>(memory) << 20;
    options.overwrite = true;
    convert(options);
    if (first.empty()) first = files_of(dir / "out");
    CHECK(files_of(dir / "out") == first);
  }
  CHECK(first.count("quantization-errors.json") == 1);
}

TEST_CASE("quantization: other verbs see the values that the integers stand for") {
  const test::TempDir dir;
  convert(export_options(sample(), dir / "int8", kInt8, 2));
  const Model source = open_model(sample()), made = open_model(dir / "int8");
  CHECK(quantization_of(made.checkpoint()) == kInt8);
  // Every weight within half a step, and of the matrices of the layers only.
  for (const TensorDifference& difference : diff(source, made, {}).differences) {
    CAPTURE(difference.key);
    CHECK(quantized_columns(difference.key, source.config()) > 0);
    CHECK(difference.kind == TensorDifference::Kind::kValues);
    CHECK(difference.max_abs < 0.01);
    CHECK(difference.max_abs > 0);
  }
  ConvertOptions back;
  back.source = dir / "int8";
  back.destination = dir / "hf";
  back.format = "hf";
  Conversion conversion(back);
  CHECK(std::any_of(conversion.notes().begin(), conversion.notes().end(),
                    [](const std::string& note) { return contains(note, "INT8 by rows"); }));
  conversion.run();
  CHECK(digest_of(dir / "hf") == digest_of(dir / "int8"));
  // The same with none: plain matrices.
  convert(export_options(dir / "int8", dir / "plain", Quantization{}));
  CHECK(digest_of(dir / "plain") == digest_of(dir / "int8"));
  CHECK_FALSE(quantization_of(open_model(dir / "plain").checkpoint()).has_value());
}

TEST_CASE("quantization: compressed and verified by reading back it is the same model") {
  const test::TempDir dir;
  ConvertOptions options = export_options(sample(), dir / "plain", kInt4);
  options.verify = Verify::kReadback;
  convert(options);
  options.destination = dir / "zstd";
  options.compress = true;
  convert(options);
  CHECK(digest_of(dir / "zstd") == digest_of(dir / "plain"));
  CHECK(check_directory(dir / "zstd", {}).faults.empty());
}

TEST_CASE("quantization: errors are reported for each matrix in a fixed order") {
  const test::TempDir dir;
  const ConvertSummary summary = convert(export_options(sample(), dir / "out", kInt8, 2));
  CHECK(summary.quantization_errors.size() == 2 * 8 * 4);
  for (const QuantizationError& error : summary.quantization_errors) {
    CAPTURE(error.name);
    // A step of absmax / 127 errs by a third of its half on average.
    CHECK(error.relative_rms > 0.002);
    CHECK(error.relative_rms < 0.02);
  }
  const auto report =
      nlohmann::json::parse(test::read_bytes(dir / "out" / "quantization-errors.json"));
  CHECK(report["tensors"].size() == summary.quantization_errors.size());
  CHECK(report["relative_rms_error"] == total_relative_rms(summary.quantization_errors));
}

TEST_CASE("quantization: groups that do not divide the rows are refused with those that do") {
  const test::TempDir dir;
  const std::string text = refusal([&] {
    convert(export_options(sample(), dir / "out", Quantization{4, 64}));
  });
  CHECK(contains(text, "--group-size 64: intermediate_size is 352"));
  CHECK(contains(text, "use 32, or --group-size 0"));
  CHECK(contains(refusal([&] {
                   convert(export_options(sample(), dir / "out", Quantization{8, 48}));
                 }),
                 "they are of 32, 64, 128 or 256 columns"));
  CHECK(fs::is_empty(dir.path()));
}

TEST_CASE("quantization: integers of integers are refused") {
  const test::TempDir dir;
  convert(export_options(sample(), dir / "int8", kInt8));
  CHECK(contains(refusal([&] { convert(export_options(dir / "int8", dir / "out", kInt4)); }),
                 "would err twice"));
  ConvertOptions rows = export_options(sample(), dir / "out", kInt8);
  rows.matrix_layout = formats::MatrixLayout::kRows;
  CHECK(contains(refusal([&] { convert(rows); }), "quantised matrices are panels"));
}

TEST_CASE("quantization: a weight that is not finite is refused by name and nothing is left") {
  const test::TempDir dir;
  fs::copy(sample(), dir / "bad", fs::copy_options::recursive);
  const Model model = open_model(sample());
  for (const formats::StoredTensor& tensor : model.checkpoint().tensors) {
    if (tensor.name != "model.layers.4.mlp.up_proj.weight") continue;
    std::string bytes = test::read_bytes(dir / "bad" / "model.safetensors");
    // Row 5, column 9: an infinity in BF16.
    bytes[tensor.offset_bytes + 2 * (5 * 128 + 9)] = '\x80';
    bytes[tensor.offset_bytes + 2 * (5 * 128 + 9) + 1] = '\x7F';
    test::write_bytes(dir / "bad" / "model.safetensors", bytes);
  }
  const std::string text =
      refusal([&] { convert(export_options(dir / "bad", dir / "out", kInt4)); });
  CHECK(contains(text, "tensor 'model.layers.4.mlp.up_proj.weight'"));
  CHECK(contains(text, "NaN or infinite"));
  CHECK(contains(text, "column 9 of 'layers.4.gate_up'"));
  CHECK_FALSE(fs::exists(dir / "out"));
}

TEST_CASE("quantization: a description that is damaged or unknown is refused") {
  const test::TempDir dir;
  convert(export_options(sample(), dir / "out", kInt4));
  const fs::path file = dir / "out" / "model.json";
  const std::string good = test::read_bytes(file);
  const struct {
    const char *from, *to, *message;
  } faults[] = {
      {"\"llmctl_export\": 2", "\"llmctl_export\": 3", "version 1 or 2 expected"},
      {"\"llmctl_export\": 2", "\"llmctl_export\": 1", "do not go together"},
      {"\"quantization\"", "\"quantisation\"", "do not go together"},
      {"\"bits\":4", "\"bits\":5", "INT5 in groups of 32 is unknown"},
      {"\"bits\":4", "\"bits\":8", "INT8 in groups of 32 of a matrix"},
      {"\"bits\":4", "\"bats\":4", "says no bits or group_size"},
      {"\"bits\":4", "\"bits\":-4", "bits"},
      {"\"group_size\":32", "\"group_size\":16", "is unknown"},
      {"\"group_size\":32", "\"group_size\":64", "INT4 in groups of 64 of a matrix"},
      {"\"group_size\":32", "\"group_size\":0", "scales of"},
      {"\"symmetric\"", "\"awq\"", "unknown quantization method"},
      {"\"scale_dtype\":\"F16\"", "\"scale_dtype\":\"F32\"", "\"F16\" expected"},
  };
  for (const auto& fault : faults) {
    CAPTURE(fault.to);
    edit(file, fault.from, fault.to);
    CHECK(contains(refusal([&] { open_model(dir / "out"); }), fault.message));
    test::write_bytes(file, good);
  }
  open_model(dir / "out");
}
