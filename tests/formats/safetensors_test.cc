#include "formats/safetensors.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <random>

#include "formats/core/error.h"
#include "formats/core/file.h"
#include "formats/json.h"
#include "tests/support/bytes.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"

namespace llmctl::formats {
namespace {

namespace fs = std::filesystem;
using test::ExactBuffer;

/// A state dict as tests/golden/safetensors/make.py lists it.
std::vector<TargetTensor> read_manifest(const std::string& name) {
  std::vector<TargetTensor> tensors;
  const fs::path path = test::golden("safetensors/" + name);
  for (const auto& row : parse_json(test::read_bytes(path), path.string())) {
    TargetTensor& tensor = tensors.emplace_back();
    tensor.name = row[0].get<std::string>();
    tensor.dtype = find_dtype(row[1].get<std::string>()).value();
    tensor.shape = row[2].get<Shape>();
  }
  REQUIRE(!tensors.empty());
  return tensors;
}

/// The bytes of every tensor in `files`, by name.
std::map<std::string, std::string> read_payloads(const std::vector<fs::path>& files) {
  std::map<std::string, std::string> payloads;
  for (const fs::path& path : files) {
    std::vector<StoredTensor> tensors;
    read_safetensors(path, 0, tensors);
    const std::string bytes = test::read_bytes(path);
    for (const StoredTensor& tensor : tensors) {
      payloads[tensor.name] = bytes.substr(tensor.offset_bytes, tensor.num_bytes());
    }
  }
  return payloads;
}

std::string render(const FilePlan& plan, const std::vector<TargetTensor>& tensors,
                   const std::map<std::string, std::string>& payloads) {
  std::string bytes(plan.size_bytes, '?');
  for (const FilePlan::Literal& literal : plan.literals) {
    bytes.replace(literal.offset_bytes, literal.bytes.size(), literal.bytes);
  }
  for (const Placement& placement : plan.placements) {
    const std::string& payload = payloads.at(tensors[static_cast<size_t>(placement.tensor)].name);
    bytes.replace(placement.offset_bytes, payload.size(), payload);
  }
  CHECK(bytes.size() == plan.size_bytes);
  return bytes;
}

/// The smallest valid file: one F32 tensor "a" of two elements.
std::string small_file() {
  const std::string header = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}} )";
  std::string bytes(8, '\0');
  bytes[0] = static_cast<char>(header.size());
  return bytes + header + "01234567";
}

TEST_CASE("safetensors: reads every tensor the Python library wrote") {
  const fs::path path = test::golden("safetensors/all_dtypes.safetensors");
  std::vector<StoredTensor> stored;
  read_safetensors(path, 7, stored);
  const std::vector<TargetTensor> expected = read_manifest("all_dtypes.tensors.json");
  REQUIRE(stored.size() == expected.size());
  for (const TargetTensor& target : expected) {
    CAPTURE(target.name);
    const auto found = std::find_if(stored.begin(), stored.end(),
                                    [&](const auto& s) { return s.name == target.name; });
    REQUIRE(found != stored.end());
    CHECK(found->dtype == target.dtype);
    CHECK(found->shape == target.shape);
    CHECK(found->file == 7);
    CHECK(found->tp_rank == -1);
    CHECK(found->is_contiguous());
  }
  // (i * 7 + 13 * seed) % 100 with seed 7 as make.py fills it.
  const auto named = std::find_if(stored.begin(), stored.end(),
                                  [](const auto& s) { return s.name == "größe.层.😀"; });
  REQUIRE(named != stored.end());
  float values[3];
  std::memcpy(values, test::read_bytes(path).data() + named->offset_bytes, sizeof values);
  CHECK(values[0] == 91.0F);
  CHECK(values[1] == 98.0F);
  CHECK(values[2] == 5.0F);
}

TEST_CASE("safetensors: writes the bytes that the Python library writes") {
  const fs::path path = test::golden("safetensors/all_dtypes.safetensors");
  const std::vector<TargetTensor> tensors = read_manifest("all_dtypes.tensors.json");
  const std::vector<FilePlan> plans = place_safetensors(tensors, WriteOptions{});
  REQUIRE(plans.size() == 1);
  CHECK(plans[0].name == "model.safetensors");
  CHECK(render(plans[0], tensors, read_payloads({path})) == test::read_bytes(path));
}

TEST_CASE("safetensors: shards and index are those of huggingface_hub and transformers") {
  const fs::path folder = test::golden("safetensors/sharded");
  std::vector<fs::path> shards;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".safetensors") shards.push_back(entry.path());
  }
  const std::vector<TargetTensor> tensors = read_manifest("sharded.tensors.json");
  WriteOptions options;
  options.max_shard_bytes = 800;
  const std::vector<FilePlan> plans = place_safetensors(tensors, options);
  REQUIRE(plans.size() == shards.size() + 1);
  const auto payloads = read_payloads(shards);
  for (const FilePlan& plan : plans) {
    CAPTURE(plan.name);
    REQUIRE(fs::exists(folder / plan.name));
    CHECK(render(plan, tensors, payloads) == test::read_bytes(folder / plan.name));
  }
}

TEST_CASE("safetensors: one shard has no index whatever the limit") {
  const std::vector<TargetTensor> tensors = {{"a", DType::F32, {100}, -1, -1}};
  WriteOptions options;
  options.max_shard_bytes = 1;
  const auto plans = place_safetensors(tensors, options);
  REQUIRE(plans.size() == 1);
  CHECK(plans[0].name == "model.safetensors");
  CHECK(place_safetensors({}, options).size() == 1);
}

TEST_CASE("safetensors: refuses to place names it cannot hold") {
  const auto place = [](std::vector<TargetTensor> tensors) {
    return place_safetensors(tensors, WriteOptions{});
  };
  CHECK_THROWS_AS(place({{"a", DType::F32, {1}}, {"a", DType::F16, {1}}}), Error);
  CHECK_THROWS_AS(place({{"__metadata__", DType::F32, {1}}}), Error);
  CHECK_THROWS_AS(place({{"\xFF", DType::F32, {1}}}), Error);
}

TEST_CASE("safetensors: refuses each bad file with one clear line") {
  int count = 0;
  for (const auto& entry : fs::directory_iterator(test::golden("bad/safetensors"))) {
    CAPTURE(entry.path());
    const std::string bytes = test::read_bytes(entry.path());
    std::vector<StoredTensor> tensors;
    for (const bool from_file : {true, false}) {
      CAPTURE(from_file);
      try {
        if (from_file) {
          read_safetensors(entry.path(), 0, tensors);
        } else {
          const ExactBuffer buffer(bytes);
          parse_safetensors(buffer.bytes(), "memory", 0, tensors);
        }
        FAIL_CHECK("accepted");
      } catch (const Error& e) {
        CHECK(e.code() == ErrorCode::kInvalidInput);
        const std::string line = e.what();
        CHECK(line.find('\n') == std::string::npos);
        CHECK(line.size() < 600);
        const std::string stem = entry.path().stem().string();
        if (stem.rfind("dtype-", 0) == 0) CHECK(line.find(stem.substr(6)) != std::string::npos);
        if (stem == "lfs-pointer" && from_file) {
          CHECK(line.find("Git LFS pointer") != std::string::npos);
        }
      }
      CHECK(tensors.empty());
    }
    ++count;
  }
  CHECK(count > 50);
}

TEST_CASE("safetensors: names what is wrong and by how much") {
  const auto message = [](const std::string& fault) {
    std::vector<StoredTensor> tensors;
    try {
      read_safetensors(test::golden("bad/safetensors/" + fault + ".safetensors"), 0, tensors);
    } catch (const Error& e) {
      return e.message() + "; " + e.hint();
    }
    return std::string("accepted");
  };
  CHECK(message("size-too-small") ==
        "tensor 'a': 12 bytes expected for F32 [3], header says 8; the file is damaged; fetch it "
        "again");
  CHECK(message("duplicate-name-by-escape").find("tensor 'a' is listed twice") == 0);
  CHECK(message("trailing-byte").find("1 bytes follow the last tensor") == 0);
  CHECK(message("hole").find("(a hole)") != std::string::npos);
  CHECK(message("overlap").find("(an overlap)") != std::string::npos);
  CHECK(message("header-above-limit").find("100000001") != std::string::npos);
}

TEST_CASE("safetensors: every prefix and every longer file is refused") {
  for (const std::string& bytes :
       {small_file(), test::read_bytes(test::golden("safetensors/all_dtypes.safetensors"))}) {
    std::vector<StoredTensor> tensors;
    for (size_t size = 0; size < bytes.size(); ++size) {
      CAPTURE(size);
      const ExactBuffer buffer(bytes.substr(0, size));
      CHECK_THROWS_AS(parse_safetensors(buffer.bytes(), "prefix", 0, tensors), Error);
    }
    const ExactBuffer longer(bytes + '\0');
    CHECK_THROWS_AS(parse_safetensors(longer.bytes(), "longer", 0, tensors), Error);
    CHECK(tensors.empty());
    parse_safetensors(ExactBuffer(bytes).bytes(), "whole", 0, tensors);
    CHECK(!tensors.empty());
  }
}

TEST_CASE("safetensors: a changed header byte is refused or harmless") {
  const std::string good = test::read_bytes(test::golden("safetensors/all_dtypes.safetensors"));
  std::mt19937 random(1);
  int refused = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = good;
    bytes[random() % 2000] = static_cast<char>(random());
    const ExactBuffer buffer(bytes);
    std::vector<StoredTensor> tensors;
    try {
      parse_safetensors(buffer.bytes(), "changed", 0, tensors);
      for (const StoredTensor& tensor : tensors) {
        CHECK(is_inside(tensor.offset_bytes, tensor.num_bytes(), bytes.size()));
      }
    } catch (const Error&) {
      ++refused;
    }
  }
  CHECK(refused > 10000);
}

TEST_CASE("safetensors: white space between tokens and other key orders are read") {
  const std::string header =
      " \"a\" : { \"data_offsets\" : [ 0 , 8 ] ,\n\t\"shape\":[2 ], \"dtype\":\"F32\" } ";
  const std::string text = "{" + header + "}  ";
  std::string bytes(8, '\0');
  bytes[0] = static_cast<char>(text.size());
  const ExactBuffer buffer(bytes + text + "01234567");
  std::vector<StoredTensor> tensors;
  parse_safetensors(buffer.bytes(), "spaced", 0, tensors);
  REQUIRE(tensors.size() == 1);
  CHECK(tensors[0].shape == Shape{2});
  CHECK(tensors[0].offset_bytes == 8 + text.size());
}

TEST_CASE("safetensors: a header length that looks like a gzip signature is a length") {
  const test::TempDir dir;
  std::string header = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  header.resize(0x8B1F, ' ');
  test::write_bytes(dir / "x.safetensors",
                    std::string("\x1F\x8B\0\0\0\0\0\0", 8) + header + "01234567");
  std::vector<StoredTensor> tensors;
  read_safetensors(dir / "x.safetensors", 0, tensors);
  CHECK(tensors.size() == 1);
}

TEST_CASE("safetensors: a file without tensors is valid") {
  std::vector<StoredTensor> tensors;
  const std::string bytes = std::string("\x08\0\0\0\0\0\0\0", 8) + "{}      ";
  parse_safetensors(ExactBuffer(bytes).bytes(), "empty", 0, tensors);
  CHECK(tensors.empty());
}

TEST_CASE("safetensors: huge hostile headers cost little memory") {
  const test::TempDir dir;
  const auto refuse = [&](const std::string& start, const std::string& repeated) {
    std::string header = start;
    while (header.size() + repeated.size() <= 99'999'000) header += repeated;
    header.resize(99'999'000, ' ');
    std::string bytes(8, '\0');
    for (int i = 0; i < 8; ++i)
      bytes[static_cast<size_t>(i)] = static_cast<char>(header.size() >> 8 * i);
    test::write_bytes(dir / "x.safetensors", bytes + header);
    header = {};
    header.shrink_to_fit();
    bytes = {};
    std::vector<StoredTensor> tensors;
    const test::Cost cost = test::measure(
        [&] { CHECK_THROWS_AS(read_safetensors(dir / "x.safetensors", 0, tensors), Error); });
    CAPTURE(start);
    CAPTURE(cost.peak_growth_bytes);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    CHECK(cost.peak_growth_bytes < int64_t{64} << 20);
#endif
  };
  refuse("{", " ");
  refuse("{\"", "n");
  refuse("{\"__metadata__\":{\"k\":\"", "v");
  refuse("{\"__metadata__\":{\"k\":\"\"", ",\"k\":\"\"");
  refuse("{\"x\":", "[");
  refuse("{\"x\":", "{\"a\":");
  refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[1", ",1");
  refuse(R"({"":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})",
         R"(,"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})");
}

TEST_CASE("safetensors: a sparse file far larger than memory costs only its header") {
  const test::TempDir dir;
  const std::string header =
      R"({"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}})";
  std::string bytes(8, '\0');
  bytes[0] = static_cast<char>(header.size());
  test::write_bytes(dir / "big.safetensors", bytes + header);
  fs::resize_file(dir / "big.safetensors", 8 + header.size() + 4398046511104U);
  std::vector<StoredTensor> tensors;
  const test::Cost cost =
      test::measure([&] { read_safetensors(dir / "big.safetensors", 0, tensors); });
  REQUIRE(tensors.size() == 1);
  CHECK(tensors[0].num_bytes() == 4398046511104U);
  CHECK(cost.peak_growth_bytes < int64_t{8} << 20);
}

TEST_CASE("safetensors: recognises its files by their start") {
  CHECK(is_safetensors_file(test::golden("safetensors/all_dtypes.safetensors")));
  CHECK(!is_safetensors_file(test::golden("bad/safetensors/lfs-pointer.safetensors")));
  CHECK(!is_safetensors_file(test::golden("bad/safetensors/header-above-limit.safetensors")));
  CHECK(!is_safetensors_file(test::golden("safetensors")));
  CHECK(!is_safetensors_file(test::golden("safetensors/none")));
}

}  // namespace
}  // namespace llmctl::formats
