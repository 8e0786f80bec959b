#include "tests/support/test_data.h"

#include <cstdlib>
#include <iostream>

namespace llmctl::test {

std::filesystem::path source_root() { return LLMCTL_SOURCE_DIR; }

std::filesystem::path llmctl_binary() { return LLMCTL_BINARY; }

std::filesystem::path golden(const std::string& name) {
  return source_root() / "tests" / "golden" / name;
}

std::optional<std::filesystem::path> test_data(const std::string& name) {
  const char* root = std::getenv("LLMCTL_TEST_DATA");
  const std::filesystem::path path =
      (root != nullptr ? std::filesystem::path(root) : source_root() / ".." / "shared" / "data") /
      name;
  std::error_code ec;
  if (std::filesystem::exists(path, ec)) return path;
  std::cerr << "SKIPPED: " << name << " is not in LLMCTL_TEST_DATA\n";
  return std::nullopt;
}

}  // namespace llmctl::test
