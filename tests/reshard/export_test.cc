#include "reshard/export.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <map>
#include <set>

#include "formats/core/error.h"
#include "formats/core/thread_pool.h"
#include "formats/export.h"
#include "formats/file_decoder.h"
#include "reshard/compare.h"
#include "reshard/config_fields.h"
#include "reshard/convert.h"
#include "reshard/manifest.h"
#include "reshard/model.h"
#include "reshard/rank_layout.h"
#include "tests/support/bytes.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"

using namespace llmctl;
using namespace llmctl::reshard;
namespace fs = std::filesystem;

namespace {

ConvertOptions export_options(const fs::path& source, const fs::path& destination, int tp = 1,
                              int pp = 1) {
  ConvertOptions options;
  options.source = source;
  options.destination = destination;
  options.format = "export";
  options.tp = tp;
  options.pp = pp;
  options.on_overflow = OnOverflow::kError;
  return options;
}

void convert(const ConvertOptions& options) { Conversion(options).run(); }

std::string digest_of(const fs::path& path) { return digest(open_model(path), 2).digest; }

/// The sample model cut for 2 x 2 ranks; made once.
struct Sample {
  test::TempDir dir;
  fs::path source = test::source_root() / "samples" / "llama-stories";
  fs::path made = dir / "export";

  Sample() { convert(export_options(source, made, 2, 2)); }
  /// A copy to be damaged.
  fs::path copy(const std::string& name) const {
    fs::copy(made, dir / name, fs::copy_options::recursive);
    return dir / name;
  }
};

const Sample& sample() {
  static const Sample instance;
  return instance;
}

/// What opening `path` is refused with.
std::string refusal_of(const fs::path& path) {
  try {
    open_model(path);
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kInvalidInput);
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

TEST_CASE("export: every family is the same model on every grid") {
  size_t exports = 0;
  for (const auto& entry : fs::directory_iterator(test::golden("families"))) {
    if (!fs::exists(entry.path() / "config.json")) continue;
    CAPTURE(entry.path().filename().string());
    const Model source = open_model(entry.path());
    const std::string want = digest(source, 1).digest;
    for (const auto& [tp, pp] : {std::pair{1, 1}, {2, 1}, {1, 2}, {2, 2}, {4, 1}}) {
      CAPTURE(tp);
      CAPTURE(pp);
      const test::TempDir dir;
      try {
        convert(export_options(entry.path(), dir / "out", tp, pp));
      } catch (const Error& error) {
        CHECK(error.code() == ErrorCode::kUsage);
        CHECK((tp > 1 || pp > 1));
        continue;
      }
      ++exports;
      const Model made = open_model(dir / "out");
      CHECK(made.checkpoint().tensor_parallel_size == tp);
      CHECK(made.checkpoint().pipeline_parallel_size == pp);
      CHECK(digest(made, 1).digest == want);
      CHECK(diff(source, made, {}).differences.empty());
      ModelConfig config = source.config();
      config.dtype = made.config().dtype;
      CHECK(made.config() == config);
      CHECK(check_directory(dir / "out", {}).faults.empty());
    }
  }
  CHECK(exports > 60);
}

TEST_CASE("export: a model comes back from it byte for byte") {
  const test::TempDir dir;
  for (const char* name : {"llama-stories", "bloom-stories"}) {
    const fs::path source = test::source_root() / "samples" / name;
    convert(export_options(source, dir / name, 2, 2));
    ConvertOptions back;
    back.source = dir / name;
    back.destination = dir / (std::string(name) + "-hf");
    back.format = "hf";
    convert(back);
    CHECK(test::read_bytes(back.destination / "model.safetensors") ==
          test::read_bytes(source / "model.safetensors"));
    CHECK(open_model(back.destination).config() == open_model(source).config());
  }
}

TEST_CASE("export: an export is cut anew for any other grid") {
  const test::TempDir dir;
  convert(export_options(sample().made, dir / "again", 4, 1));
  convert(export_options(dir / "again", dir / "single"));
  CHECK(digest_of(dir / "single") == digest_of(sample().source));
  // Cut from the source or from an export: ranks differ in nothing but the id.
  convert(export_options(sample().source, dir / "direct"));
  const Model a = open_model(dir / "single"), b = open_model(dir / "direct");
  REQUIRE(a.checkpoint().tensors.size() == b.checkpoint().tensors.size());
  for (size_t i = 0; i < a.checkpoint().tensors.size(); ++i) {
    CHECK(a.checkpoint().tensors[i].offset_bytes == b.checkpoint().tensors[i].offset_bytes);
    CHECK(a.checkpoint().tensors[i].dtype == b.checkpoint().tensors[i].dtype);
  }
}

TEST_CASE("export: files do not depend on jobs and memory") {
  const test::TempDir dir;
  std::map<std::string, std::string> first;
  for (const auto& [jobs, memory] : {std::pair{1, 512}, {3, 512}, {2, 1}}) {
    ConvertOptions options = export_options(sample().source, dir / "out", 2, 2);
    options.jobs = jobs;
    options.max_memory = static_cast<uint64_t>(memory) << 20;
    options.overwrite = true;
    convert(options);
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::directory_iterator(dir / "out")) {
      files[entry.path().filename().string()] = test::read_bytes(entry.path());
    }
    if (first.empty()) first = files;
    CHECK(files == first);
  }
  CHECK(first.size() == 10);
}

TEST_CASE("export: tensors start at multiples of 64 bytes and gaps are zeros") {
  // 24 wide: vectors of 96 bytes.
  const test::TempDir dir;
  for (const char* family : {"llama-headdim", "gpt2", "bloom"}) {
    const fs::path out = dir / family;
    convert(export_options(test::golden("families") / family, out));
    const Model reread = open_model(out);
    for (const formats::StoredTensor& tensor : reread.checkpoint().tensors) {
      CAPTURE(tensor.name);
      CHECK(tensor.offset_bytes % formats::kExportAlignment == 0);
      CHECK(tensor.offset_bytes >= 4096);
    }
  }
}

TEST_CASE("export: the ranks hold what the runtime asks for") {
  const Model model = open_model(sample().made);
  std::set<std::string> names;
  for (const formats::StoredTensor& tensor : model.checkpoint().tensors) {
    names.insert(tensor.name);
    CHECK(tensor.dtype == (tensor.shape.size() > 1 ? DType::BF16 : DType::F32));
  }
  CHECK(names.count("layers.0.qkv") == 1);
  CHECK(names.count("layers.7.gate_up") == 1);
  CHECK(names.count("embed") == 1);
  CHECK(names.count("head") == 0);  // tied
}

TEST_CASE("export: a dtype is cast as run casts it") {
  const test::TempDir dir;
  ConvertOptions options = export_options(sample().source, dir / "out");
  options.dtype = DType::F32;
  convert(options);
  CHECK(digest_of(dir / "out") == digest_of(sample().source));
  options = export_options(test::golden("families") / "llama", dir / "half");
  options.dtype = DType::BF16;
  convert(options);
  const Model reread = open_model(dir / "half");
  for (const formats::StoredTensor& tensor : reread.checkpoint().tensors) {
    CHECK(tensor.dtype == (tensor.shape.size() > 1 ? DType::BF16 : DType::F32));
  }
}

TEST_CASE("export: more stages than layers are refused with what works") {
  const test::TempDir dir;
  try {
    convert(export_options(sample().source, dir / "out", 1, 9));
    FAIL("accepted");
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kUsage);
    CHECK(contains(error.what(), "use at most --pp 8"));
  }
  CHECK_THROWS_AS(convert(export_options(sample().source, dir / "out", 3, 1)), Error);
  CHECK(fs::is_empty(dir.path()));
}

TEST_CASE("export: a rank that is missing or too many or cut short is refused") {
  const fs::path missing = sample().copy("missing");
  fs::remove(missing / "rank-00002.safetensors");
  CHECK(contains(refusal_of(missing), "rank-00002.safetensors: missing: the export has 4"));

  const fs::path extra = sample().copy("extra");
  fs::copy(extra / "rank-00000.safetensors", extra / "rank-00004.safetensors");
  CHECK(contains(refusal_of(extra), "one rank too many"));

  const fs::path cut = sample().copy("cut");
  const uint64_t size = fs::file_size(cut / "rank-00001.safetensors");
  for (const uint64_t length : {uint64_t{0}, uint64_t{7}, uint64_t{5000}, size - 1, size + 1}) {
    CAPTURE(length);
    fs::resize_file(cut / "rank-00001.safetensors", length);
    CHECK(contains(refusal_of(cut), std::to_string(size) + " bytes expected, the file has " +
                                        std::to_string(length)));
  }
}

TEST_CASE("export: ranks that changed places or come from elsewhere are refused") {
  const fs::path swapped = sample().copy("swapped");
  fs::rename(swapped / "rank-00000.safetensors", swapped / "x");
  fs::rename(swapped / "rank-00001.safetensors", swapped / "rank-00000.safetensors");
  fs::rename(swapped / "x", swapped / "rank-00001.safetensors");
  CHECK(contains(refusal_of(swapped), "the file of rank 1, that of rank 0 is expected"));

  const fs::path mixed = sample().copy("mixed");
  ConvertOptions options = export_options(test::source_root() / "samples" / "bloom-stories",
                                          sample().dir / "other", 2, 2);
  convert(options);
  fs::copy(options.destination / "rank-00003.safetensors", mixed / "rank-00003.safetensors",
           fs::copy_options::overwrite_existing);
  const uint64_t size = fs::file_size(mixed / "rank-00003.safetensors");
  edit(mixed / "model.json",
       "\"rank-00003.safetensors\",\"size\":" +
           std::to_string(fs::file_size(sample().made / "rank-00003.safetensors")),
       "\"rank-00003.safetensors\",\"size\":" + std::to_string(size));
  CHECK(contains(refusal_of(mixed), "belongs to another export"));
}

TEST_CASE("export: another version or layout is refused by name") {
  const fs::path path = sample().copy("version");
  edit(path / "model.json", "\"llmctl_export\": 1", "\"llmctl_export\": 3");
  CHECK(contains(refusal_of(path), "an export of version 3, version 1 or 2 expected"));
  edit(path / "model.json", "\"llmctl_export\": 3", "\"llmctl_export\": 1");
  edit(path / "model.json", "\"matrix_layout\": \"", "\"matrix_layout\": \"z");
  CHECK(contains(refusal_of(path), "unknown matrix layout 'z"));
}

TEST_CASE("export: a model.json cut anywhere or changed in a field is refused") {
  const fs::path path = sample().copy("config");
  const std::string text = test::read_bytes(path / "model.json");
  for (size_t length = 40; length < text.size() - 2; length += 13) {
    test::write_bytes(path / "model.json", text.substr(0, length));
    CAPTURE(length);
    CHECK_THROWS_AS(open_model(path), Error);
  }
  const auto with = [&](const std::string& from, const std::string& to) {
    test::write_bytes(path / "model.json", text);
    edit(path / "model.json", from, to);
    return refusal_of(path);
  };
  CHECK(contains(with("\"tensor_parallel_size\": 2", "\"tensor_parallel_size\": 0"), "1 to 65536"));
  CHECK(contains(with("\"tensor_parallel_size\": 2", "\"tensor_parallel_size\": 4"), "list of 8"));
  CHECK(contains(with("\"hidden_size\": 128", "\"hidden_size\": 64"), "config and weights"));
  CHECK(contains(with("\"hidden_size\": 128", "\"hidden_size\": -1"), "hidden_size"));
  CHECK(contains(with("\"hidden_size\": 128,", ""), "'hidden_size' is missing"));
  CHECK(
      contains(with("\"hidden_size\"", "\"heads\": 1, \"hidden_size\""), "unknown field 'heads'"));
  CHECK(contains(with("\"vocab_size\": 2048", "\"vocab_size\": 99999999999"), "vocab_size"));
  CHECK(contains(with("\"silu\"", "\"swoosh\""), "activation"));
}

TEST_CASE("export: every field of a configuration is written and read") {
  ModelConfig config = open_model(sample().source).config();
  // Another value for each, whatever it means.
  for (const ConfigField& field : config_field_table()) {
    std::visit(
        [&](auto member) {
          auto& value = config.*member;
          using T = std::remove_reference_t<decltype(value)>;
          if constexpr (std::is_same_v<T, bool>) {
            value = !value;
          } else if constexpr (std::is_enum_v<T>) {
            value = static_cast<T>(1);
          } else if constexpr (std::is_same_v<T, double>) {
            value += 0.125;
          } else {
            value = value * 2 + 1;
          }
        },
        field.member);
  }
  config.rope_scaling = {"yarn", 4.0, 1.5, 2.5, 31.0, 2.0, 0.1, 0.7, 0.3, false, 2048, {}, {}};
  config.eos_token_ids = {7, 8};
  config.dtype = DType::F16;
  formats::Checkpoint checkpoint;
  checkpoint.format = "export";
  checkpoint.path = "somewhere";
  // Sizes that fit each other again.
  config.hidden_size = 256;
  config.lf_groups = 2;
  config.num_attention_heads = config.num_key_value_heads * 3;
  config.rotary_dim = config.head_dim - config.head_dim % 2;
  checkpoint.texts["model.json"] = "{\"config\": " + write_export_config(config) + "}";
  CHECK(read_export_config(checkpoint) == config);
}

TEST_CASE("export: a damaged copy is found by check") {
  const fs::path path = sample().copy("flipped");
  std::string bytes = test::read_bytes(path / "rank-00001.safetensors");
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  test::write_bytes(path / "rank-00001.safetensors", bytes);
  const auto report = check_directory(path, {});
  REQUIRE(report.faults.size() == 1);
  CHECK(report.faults[0].file == "rank-00001.safetensors");
}

TEST_CASE("export: panels hold what rows hold") {
  const test::TempDir dir;
  for (const char* family : {"llama-headdim", "gpt2-inner", "opt-350m", "yuan-groups"}) {
    CAPTURE(family);
    for (const DType dtype : {DType::F32, DType::F16, DType::BF16}) {
      ConvertOptions options = export_options(test::golden("families") / family, dir / "out", 2);
      options.dtype = dtype;
      options.overwrite = true;
      options.on_overflow = OnOverflow::kInf;
      options.verify = Verify::kReadback;
      convert(options);
      ConvertOptions rows = options;
      rows.destination = dir / "rows";
      rows.matrix_layout = formats::MatrixLayout::kRows;
      convert(rows);
      const Model a = open_model(dir / "out"), b = open_model(dir / "rows");
      REQUIRE(a.checkpoint().tensors.size() == b.checkpoint().tensors.size());
      for (size_t i = 0; i < a.checkpoint().tensors.size(); ++i) {
        const formats::StoredTensor &x = a.checkpoint().tensors[i], &y = b.checkpoint().tensors[i];
        CAPTURE(x.name);
        REQUIRE(x.shape == y.shape);
        REQUIRE(x.dtype == y.dtype);
        // Any part, not only whole panels.
        for (const uint64_t skip : {uint64_t{0}, uint64_t{6}, x.num_bytes() / 3}) {
          std::vector<std::byte> from_panels(x.num_bytes() - skip), from_rows(from_panels.size());
          formats::TensorFile(a.checkpoint().files[static_cast<size_t>(x.file)])
              .read_at(from_panels, x.offset_bytes + skip);
          formats::TensorFile(b.checkpoint().files[static_cast<size_t>(y.file)])
              .read_at(from_rows, y.offset_bytes + skip);
          CHECK(from_panels == from_rows);
        }
      }
    }
  }
}

TEST_CASE("export: panels of another shape than the config gives are refused") {
  const fs::path path = sample().copy("panels");
  const fs::path file = path / "rank-00000.safetensors";
  // [9, 64, 16, 2] and [18, 32, 16, 2] have equally many elements.
  edit(file, "\"layers.0.qkv\":{\"dtype\":\"BF16\",\"shape\":[8,64,16,2]",
       "\"layers.0.qkv\":{\"dtype\":\"BF16\",\"shape\":[8,32,32,2]");
  CHECK(contains(refusal_of(path), "panels of a matrix [128, 128] expected"));
}

TEST_CASE("export: a run that was stopped anywhere is continued to the same bytes") {
  ::setenv("LLMCTL_JOURNAL_BYTES", "1", 1);
  const test::TempDir dir;
  const auto options = [&](const char* name) {
    // A transposed source, and one in which slabs end amid panels.
    ConvertOptions result =
        export_options(test::source_root() / "samples" / "bloom-stories", dir / name, 2, 2);
    result.jobs = 1;
    result.max_memory = uint64_t{1} << 20;
    return result;
  };
  convert(options("want"));
  for (const uint64_t stop_at : {uint64_t{1}, uint64_t{700000}, uint64_t{2500000}}) {
    CAPTURE(stop_at);
    ConvertOptions stopped = options("out");
    stopped.resume = true;
    uint64_t done = 0;
    try {
      Conversion(stopped).run([&](uint64_t bytes) {
        done += bytes;
        if (done >= stop_at) throw Error(ErrorCode::kEnvironment, "the disk is full");
      });
      FAIL("not stopped");
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kEnvironment);
    }
    ConvertOptions resumed = options("out");
    resumed.resume = true;
    resumed.jobs = 2;
    const auto summary = Conversion(resumed).run();
    const bool continued =
        std::any_of(summary.notes.begin(), summary.notes.end(),
                    [](const auto& note) { return contains(note, "continued: "); });
    CHECK((continued || stop_at == 1));
    for (const auto& entry : fs::directory_iterator(dir / "want")) {
      const std::string name = entry.path().filename().string();
      CAPTURE(name);
      CHECK(test::read_bytes(dir / "out" / name) == test::read_bytes(entry.path()));
    }
    fs::remove_all(dir / "out");
  }
  ::unsetenv("LLMCTL_JOURNAL_BYTES");
}

TEST_CASE("export: compressed it is the same model in the same bytes for any jobs") {
  const test::TempDir dir;
  std::map<std::string, std::string> first;
  for (const int jobs : {1, 3}) {
    ConvertOptions options = export_options(sample().source, dir / "out", 2, 2);
    options.compress = true;
    options.jobs = jobs;
    options.overwrite = true;
    options.verify = Verify::kReadback;
    convert(options);
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::directory_iterator(dir / "out")) {
      files[entry.path().filename().string()] = test::read_bytes(entry.path());
    }
    if (first.empty()) first = files;
    CHECK(files == first);
  }
  CHECK(first.count("rank-00003.safetensors.zst") == 1);
  CHECK(first.count("rank-00003.safetensors") == 0);
  CHECK(digest_of(dir / "out") == digest_of(sample().source));
  CHECK(check_directory(dir / "out", {}).faults.empty());
  CHECK(diff(open_model(dir / "out"), open_model(sample().source), {}).differences.empty());
}

TEST_CASE("export: a damaged compressed file is refused or seen when it is read") {
  const test::TempDir dir;
  ConvertOptions options = export_options(sample().source, dir / "out");
  options.compress = true;
  convert(options);
  const fs::path file = dir / "out" / "rank-00000.safetensors.zst";
  const std::string bytes = test::read_bytes(file);
  for (const size_t length : {size_t{0}, size_t{16}, bytes.size() / 2, bytes.size() - 1}) {
    CAPTURE(length);
    test::write_bytes(file, bytes.substr(0, length));
    CHECK(contains(refusal_of(dir / "out"), "rank-00000.safetensors.zst"));
  }
  // Any byte: of a frame, of the index, of the footer.
  for (size_t at = 3; at < bytes.size(); at += bytes.size() / 97) {
    CAPTURE(at);
    std::string flipped = bytes;
    flipped[at] = static_cast<char>(flipped[at] ^ 0x10);
    test::write_bytes(file, flipped);
    CHECK_THROWS_AS(digest(open_model(dir / "out"), 1), Error);
  }
  for (size_t at = bytes.size() - 60; at < bytes.size(); ++at) {
    CAPTURE(at);
    std::string flipped = bytes;
    flipped[at] = static_cast<char>(flipped[at] ^ 0x80);
    test::write_bytes(file, flipped);
    try {
      digest(open_model(dir / "out"), 1);
      // Bits of the descriptor that readers must not look at.
      CHECK(at == bytes.size() - 5);
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kInvalidInput);
    }
  }
}
