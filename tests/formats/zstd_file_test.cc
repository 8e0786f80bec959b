#include "formats/zstd_file.h"

#include <doctest/doctest.h>
#include <zstd.h>

#include <random>

#include "formats/core/error.h"
#include "tests/support/bytes.h"
#include "tests/support/temp_dir.h"

using namespace llmctl;
using namespace llmctl::formats;

namespace {

std::string some_bytes(size_t size) {
  std::mt19937 random(7);
  std::string bytes(size, '\0');
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<char>(random() % (i % 5 + 1));
  return bytes;
}

}  // namespace

TEST_CASE("zstd file: any range is what was compressed") {
  const test::TempDir dir;
  const std::string bytes = some_bytes(3 * kZstdFrameBytes + 12345);
  test::write_bytes(dir / "plain", bytes);
  ThreadPool pool(2);
  compress_zstd(dir / "plain", dir / "packed", {0, 100, 100, 200000, 2 * kZstdFrameBytes}, pool);
  const ZstdFile file(dir / "packed");
  REQUIRE(file.size_bytes() == bytes.size());
  std::mt19937_64 random(1);
  for (int i = 0; i < 200; ++i) {
    const size_t lo = random() % bytes.size();
    const size_t size = random() % (i % 3 == 0 ? bytes.size() - lo : 1 + (bytes.size() - lo) % 999);
    std::string out(size, 'x');
    file.read_at(std::as_writable_bytes(std::span(out)), lo);
    CHECK(out == bytes.substr(lo, size));
  }
}

TEST_CASE("zstd file: the library's own streaming decompressor reads it whole") {
  const test::TempDir dir;
  const std::string bytes = some_bytes(kZstdFrameBytes + 77);
  test::write_bytes(dir / "plain", bytes);
  ThreadPool pool(1);
  compress_zstd(dir / "plain", dir / "packed", {500}, pool);
  const std::string packed = test::read_bytes(dir / "packed");
  std::string out(bytes.size() + 1, '\0');
  ZSTD_DStream* stream = ZSTD_createDStream();
  ZSTD_inBuffer in{packed.data(), packed.size(), 0};
  ZSTD_outBuffer to{out.data(), out.size(), 0};
  while (in.pos < in.size) {
    REQUIRE(ZSTD_isError(ZSTD_decompressStream(stream, &to, &in)) == 0);
  }
  ZSTD_freeDStream(stream);
  CHECK(to.pos == bytes.size());
  CHECK(out.substr(0, to.pos) == bytes);
}

TEST_CASE("zstd file: empty files and cuts beyond the end are no trouble") {
  const test::TempDir dir;
  ThreadPool pool(1);
  test::write_bytes(dir / "empty", "");
  compress_zstd(dir / "empty", dir / "empty.zst", {0, 5}, pool);
  CHECK(ZstdFile(dir / "empty.zst").size_bytes() == 0);
  test::write_bytes(dir / "one", "1");
  compress_zstd(dir / "one", dir / "one.zst", {0, 1, 2}, pool);
  CHECK(ZstdFile(dir / "one.zst").size_bytes() == 1);
}

TEST_CASE("zstd file: every prefix is refused") {
  const test::TempDir dir;
  ThreadPool pool(1);
  test::write_bytes(dir / "plain", some_bytes(3000));
  compress_zstd(dir / "plain", dir / "packed", {1000, 2000}, pool);
  const std::string packed = test::read_bytes(dir / "packed");
  for (size_t length = 0; length < packed.size(); length += 3) {
    CAPTURE(length);
    test::write_bytes(dir / "cut", packed.substr(0, length));
    CHECK_THROWS_AS(ZstdFile(dir / "cut"), Error);
  }
  test::write_bytes(dir / "more", packed + "x");
  CHECK_THROWS_AS(ZstdFile(dir / "more"), Error);
}
