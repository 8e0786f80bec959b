// The picture of the house as a test: includes point down, are rooted at the repository, and
// nobody but the tests looks into cli/.
#include <doctest/doctest.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "tests/support/test_data.h"

namespace llmctl {
namespace {

struct Folder {
  std::string_view name;                      ///< ends in a slash
  std::vector<std::string_view> may_include;  ///< prefixes
};

/// The first row whose name a file's path starts with decides, so core stands before formats.
const std::array<Folder, 8> kFolders = {{
    {"formats/core/", {"formats/core/"}},
    {"formats/", {"formats/"}},
    {"kernels/", {"kernels/", "formats/core/"}},
    {"reshard/", {"reshard/", "formats/", "kernels/"}},
    {"runtime/", {"runtime/", "reshard/", "formats/", "kernels/"}},
    {"cli/", {"cli/", "runtime/", "reshard/", "formats/", "kernels/"}},
    {"samples/", {"runtime/", "reshard/", "formats/", "kernels/"}},
    {"tests/", {"tests/", "cli/", "runtime/", "reshard/", "formats/", "kernels/"}},
}};

bool is_source(const std::filesystem::path& path) {
  for (const char* extension : {".h", ".cc", ".cuh", ".cu"}) {
    if (path.extension() == extension) return true;
  }
  return false;
}

bool starts_with_any(std::string_view text, const std::vector<std::string_view>& prefixes) {
  for (const std::string_view prefix : prefixes) {
    if (text.starts_with(prefix)) return true;
  }
  return false;
}

/// The name between quotes of an #include line; empty for any other line.
std::string quoted_include(const std::string& line) {
  size_t at = line.find_first_not_of(" \t");
  if (at == std::string::npos || line[at] != '#') return {};
  at = line.find_first_not_of(" \t", at + 1);
  if (at == std::string::npos || line.compare(at, 7, "include") != 0) return {};
  const size_t open = line.find('"', at + 7);
  if (open == std::string::npos) return {};
  return line.substr(open + 1, line.find('"', open + 1) - open - 1);
}

}  // namespace

TEST_CASE("includes: every one points down and names an existing file of the repository") {
  const std::filesystem::path root = llmctl::test::source_root();
  size_t num_includes = 0;
  for (const Folder& folder : kFolders) {
    if (!std::filesystem::exists(root / folder.name)) continue;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root / folder.name)) {
      if (!entry.is_regular_file() || !is_source(entry.path())) continue;
      const std::string file = entry.path().lexically_relative(root).string();
      if (file.find("/.venv/") != std::string::npos) continue;
      if (folder.name == "formats/" && file.starts_with("formats/core/")) continue;
      CAPTURE(file);
      std::ifstream stream(entry.path());
      for (std::string line; std::getline(stream, line);) {
        const std::string included = quoted_include(line);
        if (included.empty()) continue;
        CAPTURE(included);
        CHECK(starts_with_any(included, folder.may_include));
        CHECK(std::filesystem::is_regular_file(root / included));
        ++num_includes;
      }
    }
  }
  // The walk itself would pass on an empty tree.
  CHECK(num_includes > 50);
}

TEST_CASE("includes: every header guards itself and says in its first line what it is for") {
  const std::filesystem::path root = llmctl::test::source_root();
  for (const Folder& folder : kFolders) {
    if (!std::filesystem::exists(root / folder.name)) continue;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root / folder.name)) {
      if (entry.path().extension() != ".h" && entry.path().extension() != ".cuh") continue;
      if (entry.path().string().find("/.venv/") != std::string::npos) continue;
      CAPTURE(entry.path().string());
      std::ifstream stream(entry.path());
      std::string text(std::istreambuf_iterator<char>(stream), {});
      CHECK(text.starts_with("// "));
      CHECK(text.find("\n#pragma once\n") != std::string::npos);
    }
  }
}

}  // namespace llmctl
