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

std::vector<std::string> names_in(const fs::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
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

TEST_CASE("atomic directory: appears complete at commit") {
  const test::TempDir dir;
  for (const char* name : {"plain", "slash/", "two//", "./dot"}) {
    CAPTURE(name);
    const fs::path target = dir.path() / name;
    {
      AtomicDirectory out(target, false);
      test::write_bytes(out.working_path() / "f", "x");
      fs::create_directory(out.working_path() / "sub");
      test::write_bytes(out.working_path() / "sub" / "g", "y");
      CHECK(!fs::exists(target));
      out.commit();
      check_refused(ErrorCode::kInternal, "committed twice", [&] { out.commit(); });
    }
    CHECK(test::read_bytes(target / "f") == "x");
    CHECK(test::read_bytes(target / "sub" / "g") == "y");
  }
  CHECK(names_in(dir.path()) == std::vector<std::string>{"dot", "plain", "slash", "two"});
}

TEST_CASE("atomic directory: has the mode that the umask allows") {
  const test::TempDir dir;
  const mode_t mask = ::umask(027);
  {
    AtomicDirectory out(dir / "out", false);
    out.commit();
  }
  ::umask(mask);
  CHECK(fs::status(dir / "out").permissions() == static_cast<fs::perms>(0750));
}

TEST_CASE("atomic directory: leaves nothing when not committed") {
  const test::TempDir dir;
  {
    AtomicDirectory out(dir / "out", false);
    test::write_bytes(out.working_path() / "f", "x");
    CHECK(names_in(dir.path()).size() == 1);
  }
  CHECK(names_in(dir.path()).empty());
}

TEST_CASE("atomic directory: replaces an old one only when told") {
  const test::TempDir dir;
  fs::create_directory(dir / "out");
  test::write_bytes(dir / "out/old", "old");
  check_refused(ErrorCode::kUsage, "already exists", [&] { AtomicDirectory(dir / "out", false); });
  CHECK(names_in(dir.path()) == std::vector<std::string>{"out"});
  {
    AtomicDirectory out(dir / "out", true);
    test::write_bytes(out.working_path() / "new", "new");
    CHECK(test::read_bytes(dir / "out/old") == "old");
  }
  CHECK(names_in(dir / "out") == std::vector<std::string>{"old"});
  {
    AtomicDirectory out(dir / "out/", true);
    test::write_bytes(out.working_path() / "new", "new");
    out.commit();
  }
  CHECK(names_in(dir / "out") == std::vector<std::string>{"new"});
  CHECK(names_in(dir.path()) == std::vector<std::string>{"out"});
}

TEST_CASE("atomic directory: a target that appears meanwhile stands") {
  const test::TempDir dir;
  {
    AtomicDirectory out(dir / "out", false);
    fs::create_directory(dir / "out");
    test::write_bytes(dir / "out/theirs", "x");
    check_refused(ErrorCode::kUsage, "appeared", [&] { out.commit(); });
  }
  CHECK(names_in(dir.path()) == std::vector<std::string>{"out"});
  CHECK(names_in(dir / "out") == std::vector<std::string>{"theirs"});
  {
    AtomicDirectory out(dir / "out", true);
    fs::remove_all(dir / "out");
    out.commit();
  }
  CHECK(names_in(dir / "out").empty());
}

TEST_CASE("atomic directory: writes to where a link leads and keeps the link") {
  const test::TempDir dir;
  fs::create_directories(dir / "disk/model");
  test::write_bytes(dir / "disk/model/old", "old");
  fs::create_directory_symlink("disk/model", dir / "out");
  {
    AtomicDirectory out(dir / "out", true);
    CHECK(out.working_path().parent_path().filename() == "disk");
    test::write_bytes(out.working_path() / "new", "new");
    out.commit();
  }
  CHECK(fs::is_symlink(dir / "out"));
  CHECK(names_in(dir / "disk/model") == std::vector<std::string>{"new"});
  fs::create_directory_symlink("nowhere", dir / "dangling");
  check_refused(ErrorCode::kUsage, "leads nowhere",
                [&] { AtomicDirectory(dir / "dangling", true); });
}

TEST_CASE("atomic directory: refuses what must not be replaced") {
  const test::TempDir dir;
  test::write_bytes(dir / "file", "x");
  for (const bool overwrite : {false, true}) {
    CAPTURE(overwrite);
    const auto make = [&](const fs::path& path) {
      return [path, overwrite] { AtomicDirectory out(path, overwrite); };
    };
    check_refused(ErrorCode::kUsage, "", make(""));
    for (const fs::path& path :
         {fs::path("/"), fs::path("."), fs::path(".."), fs::current_path()}) {
      check_refused(ErrorCode::kUsage, overwrite ? "the current directory" : "already exists",
                    make(path));
    }
    check_refused(ErrorCode::kUsage, overwrite ? "is not a directory" : "already exists",
                  make(dir / "file"));
    check_refused(ErrorCode::kUsage, "no such directory", make(dir / "none/out"));
    check_refused(ErrorCode::kUsage, "no such directory", make(dir / "file/out"));
  }
  check_refused(ErrorCode::kUsage, "mount point", [] { AtomicDirectory out("/proc", true); });
  CHECK(test::read_bytes(dir / "file") == "x");
  CHECK(names_in(dir.path()) == std::vector<std::string>{"file"});
}

TEST_CASE("atomic directory: long names fit") {
  const test::TempDir dir;
  const std::string name(250, 'n');
  AtomicDirectory out(dir / name, false);
  out.commit();
  CHECK(fs::is_directory(dir / name));
}

TEST_CASE("atomic directory: a parent that cannot be written is an environment error") {
  if (::geteuid() == 0) {
    // Root writes anywhere but here.
    check_refused(ErrorCode::kEnvironment, "cannot write here",
                  [] { AtomicDirectory("/proc/llmctl-out", false); });
    return;
  }
  const test::TempDir dir;
  fs::permissions(dir.path(), fs::perms::owner_read | fs::perms::owner_exec);
  check_refused(ErrorCode::kEnvironment, "cannot write here",
                [&] { AtomicDirectory(dir / "out", false); });
  fs::permissions(dir.path(), fs::perms::owner_all);
}

}  // namespace
}  // namespace llmctl
