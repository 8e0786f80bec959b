// Runs every case under tests/cli/cases against the real binary; see the README there.
#include <doctest/doctest.h>
#include <fnmatch.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support/command.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"

namespace llmctl::test {
namespace {

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) {
    text.replace(at, from.size(), to);
  }
  return text;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

/// Equal line by line; an expected line that starts with "~ " is a shell pattern.
bool matches(const std::string& actual, const std::string& expected) {
  const std::vector<std::string> a = lines_of(actual), e = lines_of(expected);
  return std::equal(a.begin(), a.end(), e.begin(), e.end(),
                    [](const std::string& line, const std::string& want) {
                      if (!want.starts_with("~ ")) return line == want;
                      return ::fnmatch(want.c_str() + 2, line.c_str(), 0) == 0;
                    });
}

void write_or_remove(const std::filesystem::path& path, const std::string& text) {
  if (text.empty()) {
    std::filesystem::remove(path);
  } else {
    std::ofstream(path, std::ios::binary) << text;
  }
}

}  // namespace

TEST_CASE("cli: every case prints what stands beside it and ends with its exit code") {
  const std::filesystem::path root = source_root() / "tests" / "cli" / "cases";
  const bool update = std::getenv("LLMCTL_UPDATE_CASES") != nullptr;
  std::vector<std::filesystem::path> cases;
  for (const auto& entry : std::filesystem::directory_iterator(root)) {
    if (std::filesystem::exists(entry.path() / "cmd")) cases.push_back(entry.path());
  }
  std::sort(cases.begin(), cases.end());
  CHECK(cases.size() >= 10);
  for (const std::filesystem::path& path : cases) {
    CAPTURE(path.filename().string());
    const TempDir folder;
    CommandResult result = run_script(file_text(path / "cmd"), folder.path());
    for (std::string* text : {&result.out, &result.err}) {
      *text = replaced(*text, folder.path().string(), "$TMP");
      *text = replaced(*text, source_root().string(), "$SOURCE");
    }
    const std::string code = file_text(path / "exit_code");
    const int expected_status = code.empty() ? 0 : std::stoi(code);
    if (update) {
      if (!matches(result.out, file_text(path / "stdout")))
        write_or_remove(path / "stdout", result.out);
      if (!matches(result.err, file_text(path / "stderr")))
        write_or_remove(path / "stderr", result.err);
      write_or_remove(path / "exit_code",
                      result.status == 0 ? "" : std::to_string(result.status) + "\n");
      continue;
    }
    CHECK(result.status == expected_status);
    // The message of a failed check shows both texts; matches() alone would show only "false".
    if (!matches(result.out, file_text(path / "stdout"))) {
      CHECK(result.out == file_text(path / "stdout"));
    }
    if (!matches(result.err, file_text(path / "stderr"))) {
      CHECK(result.err == file_text(path / "stderr"));
    }
  }
}

}  // namespace llmctl::test
