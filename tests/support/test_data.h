// Where tests find inputs: goldens in the tree, and the optional large data set beside it.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <optional>
#include <string>

namespace llmctl::test {

/// A file under tests/golden.
inline std::filesystem::path golden(const std::string& name) {
  return std::filesystem::path(LLMCTL_SOURCE_DIR) / "tests" / "golden" / name;
}

/// `name` inside LLMCTL_TEST_DATA (default ../shared/data beside the checkout); nothing, with a
/// loud line, when the data set is absent.
inline std::optional<std::filesystem::path> test_data(const std::string& name) {
  const char* root = std::getenv("LLMCTL_TEST_DATA");
  const std::filesystem::path path =
      (root != nullptr ? std::filesystem::path(root)
                       : std::filesystem::path(LLMCTL_SOURCE_DIR) / ".." / "shared" / "data") /
      name;
  std::error_code ec;
  if (std::filesystem::exists(path, ec)) return path;
  std::cerr << "SKIPPED: " << name << " is not in LLMCTL_TEST_DATA\n";
  return std::nullopt;
}

}  // namespace llmctl::test
