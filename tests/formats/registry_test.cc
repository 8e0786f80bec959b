#include "formats/registry.h"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include <algorithm>
#include <set>

#include "formats/core/error.h"
#include "tests/support/bytes.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"

namespace llmctl::formats {
namespace {

namespace fs = std::filesystem;

std::string refusal_of(const fs::path& path, ErrorCode code = ErrorCode::kInvalidInput) {
  try {
    read_checkpoint(path);
  } catch (const Error& e) {
    CHECK(e.code() == code);
    CHECK(std::string(e.what()).find('\n') == std::string::npos);
    return e.what();
  }
  return "accepted";
}

TEST_CASE("registry: names are unique and every row reads") {
  std::set<std::string_view> names;
  for (const Format& format : format_table()) {
    CAPTURE(format.name);
    CHECK(names.insert(format.name).second);
    CHECK(!format.summary.empty());
    CHECK((format.detect != nullptr));
    CHECK((format.read != nullptr));
    CHECK(find_format(format.name) == &format);
  }
  CHECK(find_format("none") == nullptr);
  CHECK(describe_known_formats().find("FasterTransformer") != std::string::npos);
}

TEST_CASE("registry: detects what the real tools wrote") {
  CHECK(read_checkpoint(test::golden("safetensors/sharded")).format == "hf");
  CHECK(read_checkpoint(test::golden("hugging_face/torch-sharded")).format == "hf");
  CHECK(read_checkpoint(test::golden("faster_transformer/2-gpu")).format == "ft");
  CHECK(read_checkpoint(test::golden("faster_transformer")).format == "ft");
}

TEST_CASE("registry: every row detects nothing in strangers and does not throw") {
  const test::TempDir dir;
  fs::create_directory(dir / "empty");
  test::write_bytes(dir / "text", "hello");
  fs::create_symlink("loop", dir / "loop");
  for (const Format& format : format_table()) {
    CAPTURE(format.name);
    for (const char* name : {"empty", "text", "loop", "absent", "text/below"}) {
      CAPTURE(name);
      CHECK(!format.detect(dir / name));
    }
    CHECK(!format.detect(""));
    CHECK(!format.detect("/dev/null"));
  }
}

TEST_CASE("registry: an empty path is a usage error and an absent one is named") {
  CHECK(refusal_of("", ErrorCode::kUsage).find("the path is empty") != std::string::npos);
  CHECK(refusal_of("/nowhere/at/all") == "/nowhere/at/all: no such file or directory");
  CHECK(refusal_of("/dev/null").find("neither a directory nor a regular file") !=
        std::string::npos);
}

TEST_CASE("registry: a pipe does not hang") {
  const test::TempDir dir;
  REQUIRE(::mkfifo((dir / "pipe").c_str(), 0600) == 0);
  CHECK(refusal_of(dir / "pipe").find("neither a directory nor") != std::string::npos);
  test::write_bytes(dir / "config.json", "{}");
  REQUIRE(::mkfifo((dir / "model.safetensors").c_str(), 0600) == 0);
  CHECK(refusal_of(dir.path()).find("not a regular file") != std::string::npos);
}

TEST_CASE("registry: strange files are named for what they are") {
  const test::TempDir dir;
  std::string tar(512, '\0');
  tar.replace(257, 5, "ustar");  // a zero byte follows, as POSIX has it
  const std::pair<std::string, std::string> strangers[] = {
      {"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"},
      {std::string("GGUF\x03\0\0\0", 8), "a GGUF file"},
      {tar, "a tar archive"},
      {"\x1F\x8B\x08", "a gzip archive"},
      {"\x89HDF\r\n", "an HDF5 file"},
      {"\x93NUMPY\x01", "a numpy array"},
      {"<!DOCTYPE html>", "an HTML page"},
      {"", "an empty file"},
      {"something else", "not a checkpoint that llmctl knows"},
  };
  for (const auto& [bytes, what] : strangers) {
    CAPTURE(what);
    for (const char* name : {"model.dat", "model.bin"}) {
      test::write_bytes(dir / name, bytes);
      CHECK(refusal_of(dir / name).find(what) != std::string::npos);
    }
  }
}

TEST_CASE("registry: one file of a checkpoint leads to its directory") {
  const test::TempDir dir;
  for (const char* name :
       {"config.json", "config.ini", "model.safetensors.index.json", "model.wte.bin"}) {
    CAPTURE(name);
    test::write_bytes(dir / name, "{}");
    CHECK(refusal_of(dir / name).find("give the directory it lies in") != std::string::npos);
  }
}

TEST_CASE("registry: strange directories are named for what they are") {
  const std::pair<std::vector<std::string>, std::string> strangers[] = {
      {{}, "an empty directory"},
      {{"config.json", "tokenizer.json"}, "config.json but no weights"},
      {{"latest_checkpointed_iteration.txt"}, "is neither an iteration nor 'release'"},
      {{"adapter_config.json", "adapter_model.safetensors"}, "a LoRA adapter"},
      {{"config.json", "adapter_config.json", "adapter_model.safetensors"}, "a LoRA adapter"},
      {{".metadata", "__0_0.distcp"}, "a torch distributed checkpoint"},
      {{"params.json", "consolidated.00.pth"}, "Meta's own layout"},
      {{"model.gguf"}, "GGUF"},
      {{"snapshots", "blobs", "refs"}, "snapshots/"},
      {{"unfusedQKV-2-gpu"}, "unfused QKV"},
      {{"README.md"}, "known are: llmctl export directory"},
  };
  for (const auto& [names, what] : strangers) {
    CAPTURE(what);
    const test::TempDir dir;
    for (const std::string& name : names) test::write_bytes(dir / name, "{}");
    CHECK(refusal_of(dir.path()).find(what) != std::string::npos);
  }
}

}  // namespace
}  // namespace llmctl::formats
