// Directory of a zip archive: which entries it has and where their bytes lie.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "formats/core/file.h"

namespace llmctl::formats {

/// One entry. Its payload is checked to lie inside the archive and to overlap no other.
struct ZipEntry {
  std::string_view name;      ///< as in the archive; lives as long as the ZipArchive
  uint64_t offset_bytes = 0;  ///< of the payload, in the file
  uint64_t size_bytes = 0;    ///< of the payload as it lies there
  uint16_t method = 0;        ///< 0: the payload is stored as it is; else: compressed
  uint32_t crc32 = 0;         ///< as the directory says; see ZipArchive::crc_matches
};

/// The entries of one archive. Reads headers only, never a payload. Immutable; safe to share.
class ZipArchive {
 public:
  /// Reads the directory of the archive in `file`, or in its `size_bytes` from `offset_bytes`.
  /// `file` is used during the call only. Throws kInvalidInput, naming `where`: no or a damaged
  /// directory, an encrypted entry, a payload outside the archive or over another, two
  /// entries of one name, bytes behind the end record.
  static ZipArchive open(const File& file, const std::string& where);
  static ZipArchive open(const File& file, uint64_t offset_bytes, uint64_t size_bytes,
                         const std::string& where);

  ZipArchive(ZipArchive&&) = default;
  ZipArchive& operator=(ZipArchive&&) = default;
  ZipArchive(const ZipArchive&) = delete;
  ZipArchive& operator=(const ZipArchive&) = delete;

  size_t size() const { return entries_.size(); }
  /// Requires: i < size(). In the order of the directory.
  ZipEntry entry(size_t i) const;
  std::optional<ZipEntry> find(std::string_view name) const;

  /// Whether the payload of `entry` (of method 0) has the CRC that the directory gives. Reads the
  /// payload.
  static bool crc_matches(const File& file, const ZipEntry& entry);

 private:
  struct Entry {
    uint64_t offset_bytes, size_bytes;
    uint32_t name_offset, crc32;
    uint16_t name_length, method;
  };

  ZipArchive() = default;
  std::string_view name(const Entry& entry) const {
    return {directory_.data() + entry.name_offset, entry.name_length};
  }

  std::string directory_;  ///< the central directory: names are views into it
  std::vector<Entry> entries_;
  std::vector<uint32_t> by_name_;
};

}  // namespace llmctl::formats
