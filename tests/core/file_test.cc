#include "formats/core/file.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "formats/core/error.h"
#include "tests/support/bytes.h"
#include "tests/support/temp_dir.h"

namespace llmctl {
namespace {

namespace fs = std::filesystem;

template <typename Call>
void check_refused(ErrorCode code, const std::string& part, const Call& call) {
  CAPTURE(part);
  try {
    call();
    FAIL_CHECK("accepted");
  } catch (const Error& e) {
    CHECK(e.code() == code);
    CHECK_MESSAGE(std::string(e.what()).find(part) != std::string::npos, e.what());
  }
}

std::span<const std::byte> as_bytes(const std::string& text) {
  return std::as_bytes(std::span(text));
}

TEST_CASE("file: only regular files open and a pipe does not block") {
  const test::TempDir dir;
  const auto open = [](const fs::path& path) { return [path] { File::open_read(path); }; };
  check_refused(ErrorCode::kInvalidInput, "no such file", open(dir / "absent"));
  test::write_bytes(dir / "file", "x");
  check_refused(ErrorCode::kInvalidInput, "no such file", open(dir / "file/below"));
  check_refused(ErrorCode::kInvalidInput, "not a regular file", open(dir.path()));
  check_refused(ErrorCode::kInvalidInput, "not a regular file", open("/dev/null"));
  REQUIRE(::mkfifo((dir / "pipe").c_str(), 0600) == 0);
  check_refused(ErrorCode::kInvalidInput, "not a regular file", open(dir / "pipe"));
  check_refused(ErrorCode::kInvalidInput, "not a regular file", [&] { MappedFile(dir / "pipe"); });
  fs::create_symlink("loop", dir / "loop");
  check_refused(ErrorCode::kEnvironment, "cannot open", open(dir / "loop"));
}

TEST_CASE("file: reads and writes at positions and refuses to read past the end") {
  const test::TempDir dir;
  File file = File::create(dir / "f");
  check_refused(ErrorCode::kEnvironment, "cannot create", [&] { File::create(dir / "f"); });
  file.allocate(10);
  CHECK(file.size_bytes() == 10);
  file.allocate(0);
  file.write_at(as_bytes("345"), 3);
  file.write_at(as_bytes("tail"), 8);
  file.sync();
  CHECK(file.size_bytes() == 12);
  const File reader = File::open_read(dir / "f");
  std::string text(4, '?');
  reader.read_at(std::as_writable_bytes(std::span(text)), 8);
  CHECK(text == "tail");
  check_refused(ErrorCode::kEnvironment, "became shorter",
                [&] { reader.read_at(std::as_writable_bytes(std::span(text)), 9); });
  check_refused(ErrorCode::kEnvironment, "cannot",
                [&] { reader.read_at(std::as_writable_bytes(std::span(text)), UINT64_MAX - 1); });
  check_refused(ErrorCode::kEnvironment, "bytes", [&] { file.allocate(UINT64_MAX); });
  check_refused(ErrorCode::kEnvironment, "cannot reserve",
                [&] { file.allocate(uint64_t{1} << 62); });
  CHECK(file.size_bytes() == 12);
}

TEST_CASE("file: a full device is an error and not a loop") {
  if (!fs::exists("/dev/full")) return;
  const test::TempDir dir;
  // /dev/full refuses every write; it is no regular file, so the descriptor is put in its place.
  File file = File::create(dir / "f");
  const int full = ::open("/dev/full", O_RDWR);
  REQUIRE(full >= 0);
  REQUIRE(::dup2(full, file.descriptor()) >= 0);
  ::close(full);
  check_refused(ErrorCode::kEnvironment, "No space left", [&] { file.write_at(as_bytes("x"), 0); });
}

TEST_CASE("file: moves hand the descriptor over") {
  const test::TempDir dir;
  test::write_bytes(dir / "a", "a");
  test::write_bytes(dir / "b", "bb");
  File a = File::open_read(dir / "a");
  File b = File::open_read(dir / "b");
  a = std::move(b);
  CHECK(a.size_bytes() == 2);
  CHECK(a.path() == dir / "b");
  const File c = std::move(a);
  CHECK(c.size_bytes() == 2);
}

TEST_CASE("file: mappings show the bytes and may be empty") {
  const test::TempDir dir;
  test::write_bytes(dir / "f", "bytes");
  const MappedFile mapped(dir / "f");
  CHECK(std::equal(mapped.bytes().begin(), mapped.bytes().end(), as_bytes("bytes").begin()));
  test::write_bytes(dir / "empty", "");
  CHECK(MappedFile(dir / "empty").bytes().empty());
}

TEST_CASE("file: text files have a limit that is checked before memory is taken") {
  const test::TempDir dir;
  test::write_bytes(dir / "f", "12345");
  CHECK(read_text_file(dir / "f", 5) == "12345");
  check_refused(ErrorCode::kInvalidInput, "at most 4", [&] { read_text_file(dir / "f", 4); });
  fs::resize_file(dir / "f", uint64_t{1} << 42);
  check_refused(ErrorCode::kInvalidInput, "at most 4", [&] { read_text_file(dir / "f", 4); });
}

}  // namespace
}  // namespace llmctl
