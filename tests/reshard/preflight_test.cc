#include "reshard/preflight.h"

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "formats/core/error.h"
#include "tests/support/temp_dir.h"

using namespace llmctl;

namespace {

/// The message of check_destination in a process without privileges; empty when it is content.
std::string unprivileged(const std::filesystem::path& target) {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    std::string line;
    try {
      if (::geteuid() == 0 && ::setuid(65534) != 0) line = "cannot drop privileges";
      if (line.empty()) reshard::check_destination(target, 1);
    } catch (const Error& error) {
      line = error.what();
    }
    [[maybe_unused]] const ssize_t n = ::write(ends[1], line.data(), line.size());
    ::_exit(0);
  }
  ::close(ends[1]);
  std::string line(4096, '\0');
  const ssize_t n = ::read(ends[0], line.data(), line.size());
  ::close(ends[0]);
  ::waitpid(child, nullptr, 0);
  line.resize(n > 0 ? static_cast<size_t>(n) : 0);
  return line;
}

}  // namespace

TEST_CASE("preflight: a directory without write permission is refused by name") {
  test::TempDir dir;
  namespace fs = std::filesystem;
  fs::permissions(dir.path(), fs::perms(0755));
  fs::create_directory(dir / "locked");
  fs::create_directory(dir / "open");
  fs::permissions(dir / "locked", fs::perms(0555));
  fs::permissions(dir / "open", fs::perms(0777));
  for (const char* below : {"locked/out", "locked/deep/out"}) {
    const std::string line = unprivileged(dir / below);
    CHECK(line.find((dir / "locked").string() + ": no permission to write here") == 0);
  }
  CHECK(unprivileged(dir / "open/out").empty());
  CHECK(unprivileged(dir / "open/deep/out").empty());
  fs::permissions(dir / "locked", fs::perms(0755));
}

TEST_CASE("preflight: more bytes than any disk has are refused") {
  test::TempDir dir;
  CHECK_NOTHROW(reshard::check_destination(dir / "out", 1));
  CHECK_THROWS_AS(reshard::check_destination(dir / "out", uint64_t{1} << 62), Error);
}

TEST_CASE("preflight: more memory than any machine has is refused") {
  CHECK_NOTHROW(reshard::check_memory(uint64_t{1} << 20, 1));
  try {
    reshard::check_memory(uint64_t{1} << 60, 1);
    FAIL("accepted");
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kEnvironment);
    CHECK(error.hint().find("--max-memory") != std::string::npos);
  }
}
