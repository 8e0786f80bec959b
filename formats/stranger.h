// Names files and directories that are no checkpoint llmctl reads for what they are.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

namespace llmctl::formats {

struct Stranger {
  std::string what;  ///< "a GGUF file"
  std::string hint;  ///< how to mend it
};

/// By the first bytes of a file; nothing when they are not known. Never throws.
std::optional<Stranger> describe_stranger_file(const std::filesystem::path& path);

/// By the names in a directory; nothing when they are not known. Never throws.
std::optional<Stranger> describe_stranger_directory(const std::filesystem::path& path);

}  // namespace llmctl::formats
