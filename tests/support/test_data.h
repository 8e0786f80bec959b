// Where tests find inputs: the checkout, its goldens, and the optional large data set beside it.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

namespace llmctl::test {

/// The checkout that the tests were built from.
std::filesystem::path source_root();

/// The `llmctl` that was built with the tests.
std::filesystem::path llmctl_binary();

/// A file under tests/golden.
std::filesystem::path golden(const std::string& name);

/// `name` inside LLMCTL_TEST_DATA (default ../shared/data beside the checkout); nothing, with a
/// loud line, when the data set is absent.
std::optional<std::filesystem::path> test_data(const std::string& name);

}  // namespace llmctl::test
