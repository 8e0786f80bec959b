// The table of checkpoint formats: what can be detected, read and written.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/checkpoint.h"

namespace llmctl::formats {

/// One row per format. Plain function pointers: the whole list stands in registry.cc.
struct Format {
  std::string_view name;     ///< "hf", "ft", ... as `--to` spells it
  std::string_view summary;  ///< one line for help and docs
  /// Whether `path` looks like this format, from names and a few bytes only. Never throws.
  bool (*detect)(const std::filesystem::path& path);
  /// Reads and validates every header and index; throws kInvalidInput on the first fault. No
  /// tensor payload is read.
  Checkpoint (*read)(const std::filesystem::path& path);
  /// Lays target tensors out in files; null where llmctl only reads the format.
  std::vector<FilePlan> (*place)(std::span<const TargetTensor> tensors, const WriteOptions&);
};

/// All formats, in the order in which detection tries them.
std::span<const Format> format_table();

/// Detects and reads. Throws kInvalidInput with what was looked for when nothing matches (naming
/// Git LFS pointers, TorchScript, tar and other known strangers for what they are), kUsage on an
/// empty path.
Checkpoint read_checkpoint(const std::filesystem::path& path);

/// The format that `path` is in, found as read_checkpoint does; same errors, nothing read.
const Format& detect_format(const std::filesystem::path& path);

/// By `--to` name; nothing when unknown.
const Format* find_format(std::string_view name);

/// The summaries of all rows on one line, for messages.
std::string describe_known_formats();

}  // namespace llmctl::formats
