#include "reshard/manifest.h"

#include <doctest/doctest.h>

#include <fstream>

#include "formats/core/block_digest.h"
#include "formats/core/error.h"
#include "tests/support/command.h"
#include "tests/support/temp_dir.h"

using namespace llmctl;
using namespace llmctl::reshard;

namespace {

Manifest example() {
  Manifest manifest;
  manifest.llmctl_version = "1.2.3";
  manifest.format = "megatron";
  manifest.family = "llama";
  manifest.geometry = {4, 2, {3, 5}};
  manifest.source_format = "hf";
  manifest.source_fingerprint = std::string(32, 'a');
  manifest.files = {{"a/b.bin", 12, std::string(32, '0')},
                    {"c \"quoted\"", 0, std::string(32, '1')}};
  manifest.tensors = {{"embed", DType::BF16, 0x0123456789abcdefU}};
  return manifest;
}

/// Changes the document and signs it anew.
std::string forged(const std::string& from, const std::string& to) {
  std::string text = write_manifest(example());
  const size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  text.replace(at, from.size(), to);
  return text;
}

}  // namespace

TEST_CASE("manifest: what is written is read and the same is written again") {
  const std::string text = write_manifest(example());
  CHECK(is_intact_manifest(text));
  const Manifest manifest = parse_manifest(text, "m");
  CHECK(manifest.files == example().files);
  CHECK(manifest.geometry.pipeline_blocks == std::vector<int64_t>{3, 5});
  CHECK(manifest.tensors[0].digest == example().tensors[0].digest);
  CHECK(manifest.tensors[0].dtype == DType::BF16);
  CHECK(write_manifest(manifest) == text);
}

TEST_CASE("manifest: no flipped bit and no missing byte leaves it intact") {
  std::string text = write_manifest(example());
  for (size_t bit = 0; bit < text.size() * 8; ++bit) {
    text[bit / 8] = static_cast<char>(text[bit / 8] ^ (1 << bit % 8));
    REQUIRE(!is_intact_manifest(text));
    text[bit / 8] = static_cast<char>(text[bit / 8] ^ (1 << bit % 8));
  }
  for (size_t size = 0; size < text.size(); ++size) {
    REQUIRE(!is_intact_manifest(std::string_view(text).substr(0, size)));
  }
  CHECK(!is_intact_manifest(text + "\n"));
}

TEST_CASE("manifest: names that lead outside and values of the wrong kind are refused") {
  for (const auto& [from, to] : {std::pair<std::string, std::string>{"a/b.bin", "../b.bin"},
                                 {"a/b.bin", "/b.bin"},
                                 {"a/b.bin", "a/../../b"},
                                 {"a/b.bin", ""},
                                 {"\"size\": 12", "\"size\": -1"},
                                 {"\"size\": 12", "\"size\": 1.5"},
                                 {"\"size\": 12", "\"size\": \"12\""},
                                 {"\"size\": 12,", ""},
                                 {"\"digest\": \"00", "\"digest\": \"0"},
                                 {"\"digest\": \"00", "\"digest\": \"0G"},
                                 {"BF16", "B16"},
                                 {"\"files\": [", "\"files\": [1,"},
                                 {"\"llmctl_manifest\": 1", "\"llmctl_manifest\": 2"},
                                 {"c \\\"quoted\\\"", "a/b.bin"}}) {
    const std::string change = from + " -> " + to;
    CAPTURE(change);
    CHECK_THROWS_AS(parse_manifest(forged(from, to), "m"), Error);
  }
  for (const char* text : {"", "{}", "[]", "null", "{\"llmctl_manifest\": true}"}) {
    CHECK_THROWS_AS(parse_manifest(text, "m"), Error);
  }
}

TEST_CASE("manifest: a file name that is not UTF-8 is refused") {
  Manifest manifest = example();
  manifest.files[0].name = "a\xff";
  CHECK_THROWS_AS(write_manifest(manifest), Error);
}

TEST_CASE("check_directory: a large file is shared among workers and a changed block found") {
  test::TempDir dir;
  const uint64_t size = (uint64_t{200} << 20) + 4097;
  {
    std::ofstream file(dir / "big");
    file.seekp(static_cast<std::streamoff>(size - 1));
    file << 'x';
  }
  Manifest manifest = example();
  manifest.files = {{"big", size, digest_file(dir / "big").hex()}};
  std::ofstream(dir / "llmctl-manifest.json") << write_manifest(manifest);
  uint64_t total = 0, done = 0;
  CheckOptions options;
  options.total = [&](uint64_t bytes) { total = bytes; };
  options.progress = [&](uint64_t bytes) { done += bytes; };
  CHECK(check_directory(dir.path(), options).faults.empty());
  CHECK(total == size);
  CHECK(done == size);
  options = {};
  options.jobs = 3;
  CHECK(check_directory(dir.path(), options).faults.empty());
  {
    std::fstream file(dir / "big", std::ios::in | std::ios::out);
    file.seekp(150 << 20);
    file << 'y';
  }
  const CheckResult result = check_directory(dir.path(), options);
  REQUIRE(result.faults.size() == 1);
  CHECK(result.faults[0].kind == CheckFault::Kind::kDigest);
}
