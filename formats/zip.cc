#include "formats/zip.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <span>
#include <utility>

#include "formats/core/checked.h"
#include "formats/core/error.h"
#include "formats/crc32.h"

namespace llmctl::formats {
namespace {

constexpr uint32_t kLocalSignature = 0x04034b50, kCentralSignature = 0x02014b50,
                   kEndSignature = 0x06054b50, kEnd64Signature = 0x06064b50,
                   kLocator64Signature = 0x07064b50;
constexpr uint64_t kLocalSize = 30, kCentralSize = 46, kEndSize = 22, kEnd64Size = 56,
                   kLocator64Size = 20;
// About half a million entries. A reader must not need more memory for a directory than for
// anything else.
constexpr uint64_t kMaxDirectoryBytes = uint64_t{32} << 20;
constexpr const char* kDamagedHint = "the file is damaged or cut short; download it again";

/// Little-endian integers at fixed places of a header that is known to be there.
uint64_t get(std::string_view bytes, uint64_t offset, int width) {
  uint64_t value = 0;
  for (int i = 0; i < width; ++i) {
    value |= uint64_t{static_cast<unsigned char>(
                 bytes[static_cast<size_t>(offset) + static_cast<size_t>(i)])}
             << (8 * i);
  }
  return value;
}
uint32_t get32(std::string_view bytes, uint64_t offset) {
  return static_cast<uint32_t>(get(bytes, offset, 4));
}
uint16_t get16(std::string_view bytes, uint64_t offset) {
  return static_cast<uint16_t>(get(bytes, offset, 2));
}

/// The archive's part of the file; offsets inside are relative to it.
struct Source {
  const File& file;
  uint64_t base, size;
  const std::string& where;

  [[noreturn]] void fail(const std::string& what, const std::string& hint = kDamagedHint) const {
    throw_invalid(where, "zip archive: " + what, hint);
  }
  /// Requires: the range lies inside.
  std::string read(uint64_t offset, uint64_t length) const {
    std::string out(static_cast<size_t>(length), '\0');
    file.read_at(std::as_writable_bytes(std::span(out)), base + offset);
    return out;
  }
};

struct Directory {
  uint64_t count = 0, offset = 0, size = 0;
};

/// The end record is the last thing in the file: its comment must reach exactly to the end.
uint64_t find_end_record(const Source& source) {
  const uint64_t window = std::min<uint64_t>(source.size, kEndSize + 0xFFFF);
  const std::string tail = source.read(source.size - window, window);
  for (uint64_t i = window < kEndSize ? 0 : window - kEndSize + 1; i-- > 0;) {
    if (get32(tail, i) == kEndSignature && get16(tail, i + 20) == window - i - kEndSize) {
      return source.size - window + i;
    }
  }
  source.fail("no end-of-directory record");
}

Directory read_end_records(const Source& source) {
  const uint64_t end_offset = find_end_record(source);
  const std::string end = source.read(end_offset, kEndSize);
  if (get16(end, 4) != 0 && get16(end, 4) != 0xFFFF) source.fail("it is split over several disks");
  Directory directory{get16(end, 10), get32(end, 16), get32(end, 12)};
  uint64_t limit = end_offset;

  const std::string locator = end_offset >= kLocator64Size
                                  ? source.read(end_offset - kLocator64Size, kLocator64Size)
                                  : std::string(kLocator64Size, '\0');
  if (get32(locator, 0) == kLocator64Signature) {
    const uint64_t offset = get(locator, 8, 8);
    if (!is_inside(offset, kEnd64Size, end_offset - kLocator64Size)) {
      source.fail("the zip64 end record lies outside");
    }
    const std::string end64 = source.read(offset, kEnd64Size);
    if (get32(end64, 0) != kEnd64Signature)
      source.fail("no zip64 end record where one is announced");
    const Directory directory64{get(end64, 32, 8), get(end64, 48, 8), get(end64, 40, 8)};
    // Two readers that trust different records must not see different archives.
    if ((directory.count != 0xFFFF && directory.count != directory64.count) ||
        (directory.offset != 0xFFFFFFFF && directory.offset != directory64.offset) ||
        (directory.size != 0xFFFFFFFF && directory.size != directory64.size)) {
      source.fail("the end record and the zip64 end record disagree");
    }
    directory = directory64;
    limit = offset;
  }
  if (!is_inside(directory.offset, directory.size, limit)) {
    source.fail("the directory (" + std::to_string(directory.size) + " bytes at " +
                std::to_string(directory.offset) + ") does not lie before its end record at " +
                std::to_string(limit));
  }
  if (directory.size > kMaxDirectoryBytes) {
    source.fail("a directory of " + std::to_string(directory.size) + " bytes; at most " +
                    std::to_string(kMaxDirectoryBytes) + " are accepted",
                "");
  }
  if (directory.count > directory.size / kCentralSize) {
    source.fail("the directory is too short for its " + std::to_string(directory.count) +
                " entries");
  }
  return directory;
}

struct CentralRecord {
  std::string_view name;
  uint64_t size, compressed_size, header_offset;
  uint16_t method;
};

/// Replaces the fields that hold ffffffff by those of the zip64 block, in its fixed order.
void apply_zip64(const Source& source, std::string_view extra, CentralRecord& record) {
  const bool need_size = record.size == 0xFFFFFFFF,
             need_compressed = record.compressed_size == 0xFFFFFFFF,
             need_offset = record.header_offset == 0xFFFFFFFF;
  if (!need_size && !need_compressed && !need_offset) return;
  while (extra.size() >= 4) {
    const uint16_t id = get16(extra, 0), length = get16(extra, 2);
    if (length > extra.size() - 4) break;
    if (id == 0x0001) {
      std::string_view block = extra.substr(4, length);
      const auto take = [&](bool needed, uint64_t& field) {
        if (!needed) return;
        if (block.size() < 8) {
          source.fail("the zip64 block of '" + printable(std::string(record.name)) +
                      "' is too short");
        }
        field = get(block, 0, 8);
        block.remove_prefix(8);
      };
      take(need_size, record.size);
      take(need_compressed, record.compressed_size);
      take(need_offset, record.header_offset);
      return;
    }
    extra.remove_prefix(size_t{4} + length);
  }
  // Without a block the values are meant as they stand, and the range checks judge them.
}

/// Checks the local header against the central one and returns where the payload begins.
uint64_t find_payload(const Source& source, const CentralRecord& record, uint64_t limit) {
  const std::string entry = "entry '" + printable(std::string(record.name)) + "'";
  if (!is_inside(record.header_offset, kLocalSize + record.name.size(), limit)) {
    source.fail(entry + ": its header at " + std::to_string(record.header_offset) +
                " does not lie before the directory at " + std::to_string(limit));
  }
  const std::string local = source.read(record.header_offset, kLocalSize + record.name.size());
  if (get32(local, 0) != kLocalSignature)
    source.fail(entry + ": no header where the directory says");
  if (get16(local, 8) != record.method || (get16(local, 6) & 1) != 0) {
    source.fail(entry + ": header and directory disagree on compression or encryption");
  }
  if (get16(local, 26) != record.name.size() ||
      std::string_view(local).substr(kLocalSize) != record.name) {
    source.fail(entry + ": its header carries another name");
  }
  // Zero while a data descriptor has the sizes, ffffffff while a zip64 block has them.
  const uint32_t local_size = get32(local, 18);
  if (local_size != 0 && local_size != 0xFFFFFFFF && local_size != record.compressed_size) {
    source.fail(entry + ": " + std::to_string(local_size) + " bytes by its header, " +
                std::to_string(record.compressed_size) + " by the directory");
  }
  const uint64_t start = record.header_offset + kLocalSize + record.name.size() + get16(local, 28);
  if (!is_inside(start, record.compressed_size, limit)) {
    source.fail(entry + ": its " + std::to_string(record.compressed_size) + " bytes at " +
                std::to_string(start) + " do not lie before the directory at " +
                std::to_string(limit));
  }
  return start;
}

}  // namespace

ZipArchive ZipArchive::open(const File& file, const std::string& where) {
  return open(file, 0, file.size_bytes(), where);
}

ZipArchive ZipArchive::open(const File& file, uint64_t offset_bytes, uint64_t size_bytes,
                            const std::string& where) {
  const Source source{file, offset_bytes, size_bytes, where};
  if (!is_inside(offset_bytes, size_bytes, file.size_bytes())) {
    source.fail("it does not lie inside the file");
  }
  const Directory directory = read_end_records(source);

  ZipArchive archive;
  archive.directory_ = source.read(directory.offset, directory.size);
  archive.entries_.reserve(static_cast<size_t>(directory.count));
  std::vector<uint64_t> header_offsets;
  header_offsets.reserve(static_cast<size_t>(directory.count));
  const std::string_view bytes = archive.directory_;
  uint64_t position = 0;
  for (uint64_t i = 0; i < directory.count; ++i) {
    const std::string_view rest = bytes.substr(static_cast<size_t>(position));
    if (rest.size() < kCentralSize || get32(rest, 0) != kCentralSignature) {
      source.fail("directory record " + std::to_string(i) + " is damaged");
    }
    const uint16_t name_length = get16(rest, 28), extra_length = get16(rest, 30),
                   comment_length = get16(rest, 32);
    const uint64_t length = kCentralSize + name_length + extra_length + comment_length;
    if (length > rest.size())
      source.fail("directory record " + std::to_string(i) + " is cut short");
    CentralRecord record{rest.substr(kCentralSize, name_length), get32(rest, 24), get32(rest, 20),
                         get32(rest, 42), get16(rest, 10)};
    const auto entry_name = [&] { return "entry '" + printable(std::string(record.name)) + "'"; };
    if ((get16(rest, 8) & 1) != 0) source.fail(entry_name() + " is encrypted", "");
    apply_zip64(source, rest.substr(kCentralSize + name_length, extra_length), record);
    if (record.method == 0 && record.compressed_size != record.size) {
      source.fail(entry_name() + " is stored but has two sizes: " +
                  std::to_string(record.compressed_size) + " and " + std::to_string(record.size));
    }
    const uint64_t payload = find_payload(source, record, directory.offset);
    archive.entries_.push_back({payload, record.compressed_size,
                                static_cast<uint32_t>(position + kCentralSize), get32(rest, 16),
                                name_length, record.method});
    header_offsets.push_back(record.header_offset);
    position += length;
  }
  if (position != bytes.size()) {
    source.fail("the directory is longer than its " + std::to_string(directory.count) + " entries");
  }

  auto& order = archive.by_name_;
  order.resize(archive.entries_.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(),
            [&](uint32_t a, uint32_t b) { return header_offsets[a] < header_offsets[b]; });
  for (size_t i = 1; i < order.size(); ++i) {
    const Entry& before = archive.entries_[order[i - 1]];
    if (before.offset_bytes + before.size_bytes > header_offsets[order[i]]) {
      source.fail("entries '" + printable(std::string(archive.name(before))) + "' and '" +
                  printable(std::string(archive.name(archive.entries_[order[i]]))) + "' overlap");
    }
  }
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    return archive.name(archive.entries_[a]) < archive.name(archive.entries_[b]);
  });
  for (size_t i = 1; i < order.size(); ++i) {
    const std::string_view name = archive.name(archive.entries_[order[i]]);
    if (archive.name(archive.entries_[order[i - 1]]) == name) {
      source.fail("two entries are named '" + printable(std::string(name)) + "'");
    }
  }
  for (Entry& entry : archive.entries_) entry.offset_bytes += offset_bytes;
  return archive;
}

ZipEntry ZipArchive::entry(size_t i) const {
  const Entry& entry = entries_[i];
  return {name(entry), entry.offset_bytes, entry.size_bytes, entry.method, entry.crc32};
}

std::optional<ZipEntry> ZipArchive::find(std::string_view wanted) const {
  const auto it = std::lower_bound(
      by_name_.begin(), by_name_.end(), wanted,
      [&](uint32_t index, std::string_view text) { return name(entries_[index]) < text; });
  if (it == by_name_.end() || name(entries_[*it]) != wanted) return std::nullopt;
  return entry(*it);
}

bool ZipArchive::crc_matches(const File& file, const ZipEntry& entry) {
  std::vector<std::byte> buffer(size_t{1} << 20);
  uint32_t crc = 0;
  for (uint64_t done = 0; done < entry.size_bytes;) {
    const uint64_t n = std::min<uint64_t>(buffer.size(), entry.size_bytes - done);
    const std::span<std::byte> part = std::span(buffer).first(static_cast<size_t>(n));
    file.read_at(part, entry.offset_bytes + done);
    crc = crc32(part, crc);
    done += n;
  }
  return crc == entry.crc32;
}

}  // namespace llmctl::formats
