#include "formats/core/atomic_directory.h"

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

TEST_CASE("atomic directory: clears up after a killed run or takes over what it left") {
  const test::TempDir dir;
  const fs::path partial = dir / ".out.llmctl-partial";
  const auto leave = [&] {
    fs::create_directories(partial / "deep/deeper");
    test::write_bytes(partial / "deep/half", "x");
  };
  leave();
  {
    AtomicDirectory out(dir / "out", false, Leftover::kContinue);
    CHECK(out.found_leftover());
    CHECK(out.working_path() == partial);
    CHECK(list_files_below(partial) == std::vector<std::string>{"deep/half"});
    out.keep();
  }
  CHECK(fs::exists(partial / "deep/half"));
  {
    AtomicDirectory out(dir / "out", false);
    CHECK(out.found_leftover());
    CHECK(names_in(partial).empty());
    out.commit();
  }
  CHECK(names_in(dir.path()) == std::vector<std::string>{"out"});
  {
    AtomicDirectory out(dir / "out", true);
    CHECK(!out.found_leftover());
  }
  CHECK(names_in(dir.path()) == std::vector<std::string>{"out"});
}

TEST_CASE("atomic directory: two runs cannot work on one target") {
  const test::TempDir dir;
  AtomicDirectory out(dir / "out", false);
  test::write_bytes(out.working_path() / "f", "x");
  check_refused(ErrorCode::kEnvironment, "another llmctl is writing",
                [&] { AtomicDirectory(dir / "out", false); });
  CHECK(test::read_bytes(out.working_path() / "f") == "x");
  out.commit();
  AtomicDirectory next(dir / "out", true);
  CHECK(!next.found_leftover());
}

TEST_CASE("atomic directory: an old one that a killed run had set aside comes back") {
  const test::TempDir dir;
  fs::create_directory(dir / ".out.llmctl-partial.old");
  test::write_bytes(dir / ".out.llmctl-partial.old/f", "old");
  {
    AtomicDirectory out(dir / "out", true);
    CHECK(test::read_bytes(dir / "out/f") == "old");
  }
  CHECK(names_in(dir.path()) == std::vector<std::string>{"out"});
}

}  // namespace
}  // namespace llmctl
