// NumPy's .npy files, for arrays that leave llmctl towards Python.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>

#include "formats/core/file.h"

namespace llmctl::cli {

/// Writes a two-dimensional little-endian F32 array of a size known in advance, format version 1.0
/// (numpy.lib.format). The file appears under its name at `commit`, complete or not at all.
class NpyWriter {
 public:
  NpyWriter(std::filesystem::path path, int64_t num_rows, int64_t num_columns);
  /// Removes the temporary file unless committed. Never throws.
  ~NpyWriter();
  NpyWriter(const NpyWriter&) = delete;
  NpyWriter& operator=(const NpyWriter&) = delete;

  /// The next rows, (any number of rows, num_columns).
  void append(std::span<const float> values);
  /// Throws kInternal when rows are missing, kEnvironment when the file cannot be put in place; an
  /// existing file is replaced.
  void commit();

 private:
  std::filesystem::path path_, working_;
  std::optional<File> file_;
  uint64_t offset_ = 0, expected_ = 0;
};

}  // namespace llmctl::cli
