// The bytes of a checkpoint's file as its tensors lie in them, however the file holds them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "formats/core/file.h"

namespace llmctl::formats {

struct CheckpointFile;  // formats/checkpoint.h

/// Turns what a file holds (compressed frames, permuted rows) into plain bytes, any range of them.
/// Immutable after open; safe to share.
class FileDecoder {
 public:
  virtual ~FileDecoder() = default;
  virtual uint64_t size_bytes() const = 0;  ///< decoded
  /// Fills `out` from `offset` of the decoded bytes. Throws kInvalidInput when the file is damaged,
  /// kEnvironment when it cannot be read. Requires: inside size_bytes().
  virtual void read_at(std::span<std::byte> out, uint64_t offset) const = 0;
};

/// A file of a checkpoint, open for reading tensors. Safe to share.
class TensorFile {
 public:
  /// Throws what File::open_read throws.
  explicit TensorFile(const CheckpointFile& file);
  /// Decoded bytes from `offset`; throws what File::read_at and FileDecoder::read_at throw.
  void read_at(std::span<std::byte> out, uint64_t offset) const;

 private:
  std::optional<File> file_;
  std::shared_ptr<const FileDecoder> decoder_;
};

}  // namespace llmctl::formats
