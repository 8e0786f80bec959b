#include "formats/torch_file.h"

#include <doctest/doctest.h>
#include <libdeflate.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "formats/core/error.h"
#include "tests/support/bytes.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"

namespace fs = std::filesystem;
using namespace llmctl;
using namespace llmctl::formats;

namespace {

std::vector<StoredTensor> read(const fs::path& path, std::vector<std::string>* notes = nullptr) {
  std::vector<StoredTensor> out;
  std::vector<std::string> own;
  read_torch_file(path, 0, out, notes != nullptr ? *notes : own);
  return out;
}

/// The message of the refusal; empty when the file is accepted.
std::string refusal(const fs::path& path) {
  try {
    read(path);
    return {};
  } catch (const Error& e) {
    CHECK(e.code() == ErrorCode::kInvalidInput);
    return e.what();
  }
}

const StoredTensor& get(const std::vector<StoredTensor>& tensors, const std::string& name) {
  const auto it = std::find_if(tensors.begin(), tensors.end(),
                               [&](const StoredTensor& t) { return t.name == name; });
  REQUIRE_MESSAGE(it != tensors.end(), name);
  return *it;
}

/// The tensor's elements in row-major order, gathered by its strides.
std::string gather(const std::string& file, const StoredTensor& tensor) {
  std::string out;
  const size_t width = dtype_bytes(tensor.dtype);
  std::vector<int64_t> strides = tensor.strides, index(tensor.shape.size(), 0);
  if (strides.empty()) {
    strides.resize(tensor.shape.size());
    int64_t stride = 1;
    for (size_t axis = strides.size(); axis-- > 0;) {
      strides[axis] = stride;
      stride *= tensor.shape[axis];
    }
  }
  for (int64_t n = tensor.num_elements(); n > 0; --n) {
    int64_t element = 0;
    for (size_t axis = 0; axis < index.size(); ++axis) element += index[axis] * strides[axis];
    out += file.substr(tensor.offset_bytes + static_cast<size_t>(element) * width, width);
    for (size_t axis = index.size(); axis-- > 0;) {
      if (++index[axis] < tensor.shape[axis]) break;
      index[axis] = 0;
    }
  }
  return out;
}

nlohmann::json read_json(const fs::path& path) {
  return nlohmann::json::parse(test::read_bytes(path));
}

}  // namespace

TEST_CASE("torch_file: reads what torch wrote as torch reads it") {
  const nlohmann::json expected = read_json(test::golden("torch/expected.json"));
  REQUIRE(expected.size() >= 14);
  for (const auto& [name, tensors] : expected.items()) {
    CAPTURE(name);
    const fs::path path = test::golden("torch/" + name);
    CHECK(is_torch_file(path));
    const std::string bytes = test::read_bytes(path);
    const auto found = read(path);
    CHECK(found.size() == tensors.size());
    for (const StoredTensor& tensor : found) {
      CAPTURE(tensor.name);
      REQUIRE(tensors.contains(tensor.name));
      const auto& row = tensors[tensor.name];
      CHECK(dtype_info(tensor.dtype).torch == row[0].get<std::string>());
      CHECK(tensor.shape == row[1].get<Shape>());
      const std::string data = gather(bytes, tensor);
      CHECK(libdeflate_crc32(0, data.data(), data.size()) == row[2].get<uint32_t>());
    }
  }
}

TEST_CASE("torch_file: keeps strides of views only and one storage for tied tensors") {
  for (const char* name : {"torch/views.pt", "torch/views.legacy.bin"}) {
    CAPTURE(name);
    const auto tensors = read(test::golden(name));
    const uint64_t base = get(tensors, "base").offset_bytes;
    CHECK(get(tensors, "base").strides.empty());
    CHECK(get(tensors, "tied").offset_bytes == base);
    CHECK(get(tensors, "row").strides.empty());
    CHECK(get(tensors, "row").offset_bytes == base + 12 * 4);
    CHECK(get(tensors, "transposed").strides == std::vector<int64_t>{1, 6});
    CHECK(get(tensors, "column").strides == std::vector<int64_t>{6});
    CHECK(get(tensors, "expanded").strides == std::vector<int64_t>{0, 0});
    CHECK(get(tensors, "scalar").shape.empty());
    CHECK(get(tensors, "scalar").offset_bytes == base + 23 * 4);
  }
}

TEST_CASE("torch_file: zip payloads start at multiples of 64") {
  for (const StoredTensor& tensor : read(test::golden("torch/module.pt"))) {
    CHECK(tensor.offset_bytes % 64 == 0);
  }
}

TEST_CASE("torch_file: lists tensors in the order of the dicts") {
  const auto tensors = read(test::golden("torch/nested.pt"));
  std::vector<std::string> names;
  for (const auto& tensor : tensors) names.push_back(tensor.name);
  CHECK(names == std::vector<std::string>{"model.embed.weight", "model.layers.0.weight",
                                          "model.layers.1.weight", "model.pair.0", "7.exp_avg"});
}

TEST_CASE("torch_file: notes tensors under keys that are no text") {
  std::vector<std::string> notes;
  read(test::golden("torch/megatron.pt"), &notes);
  REQUIRE(notes.size() == 1);
  CHECK(notes[0].find("keys that are no text") != std::string::npos);
}

TEST_CASE("torch_file: names what it cannot read") {
  const std::map<std::string, std::string> cases = {
      {"complex.pt", "'freqs_cis' has elements of type complex64"},
      {"sparse.pt", "'w' is a sparse tensor"},
      {"quantized.pt", "'w' is a quantised tensor"},
      {"meta.pt", "meta device"},
      {"whole_module.pt", "object of torch.nn.modules.linear.Linear"},
      {"tensor.pt", "its top level is a tensor"},
      {"protocol1.pt", "pickle protocol 0 or 1"},
      {"torchscript.pt", "TorchScript"},
  };
  for (const auto& [name, message] : cases) {
    CAPTURE(name);
    const std::string refused = refusal(test::golden("torch/" + name));
    CAPTURE(refused);
    CHECK(refused.find(message) != std::string::npos);
    CHECK(refused.find(name) != std::string::npos);
  }
}

TEST_CASE("torch_file: refuses every hostile file for its own fault") {
  const nlohmann::json faults = read_json(test::golden("bad/torch/faults.json"));
  REQUIRE(faults.size() >= 90);
  for (const auto& [name, message] : faults.items()) {
    CAPTURE(name);
    std::string refused;
    const test::Cost cost =
        test::measure([&] { refused = refusal(test::golden("bad/torch/" + name)); });
    CAPTURE(refused);
    CHECK(!refused.empty());
    CHECK(refused.find(message.get<std::string>()) != std::string::npos);
    CHECK(refused.find('\n') == std::string::npos);
    CHECK(refused.size() < 1000);
    CHECK(cost.peak_growth_bytes < int64_t{64} << 20);
  }
}

TEST_CASE("torch_file: accepts the sound files that the hostile ones were made from") {
  std::vector<std::string> notes;
  const auto read_one = [&](const char* name) {
    notes.clear();
    return read(test::golden(std::string("bad/torch/accepted/") + name), &notes);
  };
  CHECK(get(read_one("zip.bin"), "w").shape == Shape{2, 3});
  CHECK(get(read_one("legacy.bin"), "w").shape == Shape{2, 3});
  CHECK(get(read_one("opaque.bin"), "w").shape == Shape{2, 3});
  CHECK(get(read_one("plain_view.bin"), "w").shape == Shape{2, 3});
  CHECK(get(read_one("billion_laughs.bin"), "w").shape == Shape{2, 3});
  CHECK(notes.empty());

  SUBCASE("a storage view moves the start") {
    const fs::path path = test::golden("bad/torch/accepted/storage_view.bin");
    const StoredTensor tensor = get(read(path), "w");
    CHECK(tensor.shape == Shape{2});
    CHECK(gather(test::read_bytes(path), tensor) == "\x10\x11\x12\x13\x14\x15\x16\x17");
  }
  SUBCASE("the last of two equal keys counts") {
    CHECK(get(read_one("duplicate_key.bin"), "w").shape == Shape{6});
    REQUIRE(notes.size() == 1);
    CHECK(notes[0].find("'w' occurs more than once") != std::string::npos);
  }
}

TEST_CASE("torch_file: refuses every prefix of a valid file") {
  const test::TempDir dir;
  for (const char* name : {"torch/nested.pt", "torch/nested.legacy.bin"}) {
    const std::string bytes = test::read_bytes(test::golden(name));
    const fs::path path = dir / "prefix.bin";
    test::write_bytes(path, bytes);
    REQUIRE(refusal(path).empty());
    for (size_t n = bytes.size(); n-- > 0;) {
      CAPTURE(name);
      CAPTURE(n);
      fs::resize_file(path, n);
      CHECK(!refusal(path).empty());
    }
  }
}

TEST_CASE("torch_file: refuses or survives every corrupted byte") {
  const test::TempDir dir;
  const fs::path path = dir / "corrupt.bin";
  for (const char* name : {"torch/nested.pt", "torch/nested.legacy.bin"}) {
    const std::string bytes = test::read_bytes(test::golden(name));
    for (size_t i = 0; i < bytes.size(); i += 3) {
      std::string changed = bytes;
      changed[i] = static_cast<char>(changed[i] ^ (1 << (i % 8)));
      test::write_bytes(path, changed);
      CAPTURE(name);
      CAPTURE(i);
      try {
        for (const StoredTensor& tensor : read(path)) {
          // Whatever was accepted lies inside the file.
          CHECK_NOTHROW(gather(changed, tensor));
        }
      } catch (const Error& e) {
        CHECK(e.code() == ErrorCode::kInvalidInput);
      }
    }
  }
}

TEST_CASE("torch_file: knows its files from strangers by their first bytes") {
  CHECK(is_torch_file(test::golden("torch/module.legacy.bin")));
  CHECK(is_torch_file(test::golden("torch/renamed.pt")));
  CHECK_FALSE(is_torch_file(test::golden("torch/expected.json")));
  CHECK_FALSE(is_torch_file(test::golden("torch")));
  CHECK_FALSE(is_torch_file(test::golden("torch/absent.pt")));
  for (const char* name : {"bare_pickle", "git_lfs_pointer", "npy", "empty", "zip_no_root"}) {
    CHECK_FALSE(is_torch_file(test::golden(std::string("bad/torch/") + name + ".bin")));
  }
}

TEST_CASE("torch_file: reads zip64 archives of more than 4 GiB as torch does") {
  const nlohmann::json large = read_json(test::golden("torch/large.json"));
  const test::TempDir dir;
  const fs::path path = dir / "large.pt";
  {
    File file = File::create(path);
    for (const auto& run : large["runs"]) {
      std::string bytes;
      const std::string hex = run[1];
      for (size_t i = 0; i < hex.size(); i += 2) {
        bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
      }
      file.write_at(std::as_bytes(std::span(bytes)), run[0].get<uint64_t>());
    }
  }
  fs::resize_file(path, large["size"].get<uint64_t>());
  std::vector<StoredTensor> tensors;
  const test::Cost cost = test::measure([&] { tensors = read(path); });
  REQUIRE(tensors.size() == 4);
  for (const StoredTensor& tensor : tensors) {
    CAPTURE(tensor.name);
    CHECK(tensor.offset_bytes == large["offsets"][tensor.name].get<uint64_t>());
  }
  CHECK(get(tensors, "large").num_bytes() == (uint64_t{1} << 32) + 100);
  CHECK(cost.peak_growth_bytes < int64_t{8} << 20);

  SUBCASE("a file cut inside the large storage is refused") {
    fs::resize_file(path, uint64_t{1} << 31);
    CHECK(refusal(path).find("no end-of-directory record") != std::string::npos);
  }
}
