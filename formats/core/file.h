// Files as the rest of the code sees them: a read-only mapping, and positioned reads and writes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>

namespace llmctl {

enum class Access { kRead, kReadWrite };

/// An open descriptor. Owns it; the positioned calls are safe from several threads.
class File {
 public:
  /// Throws kInvalidInput when the path does not exist or is not a regular file, kEnvironment
  /// when it cannot be opened.
  static File open_read(const std::filesystem::path& path);
  /// Creates (O_EXCL) a new file for writing; kEnvironment when it exists or cannot be made.
  static File create(const std::filesystem::path& path);
  /// An existing regular file for reading and writing; throws as open_read does.
  static File open_write(const std::filesystem::path& path);
  /// An existing file whose transfers bypass the page cache (O_DIRECT): memory, offset and length
  /// of each must be multiples of 4096. Nothing when the file system refuses that; otherwise throws
  /// as open_read does.
  static std::optional<File> open_direct(const std::filesystem::path& path, Access access);

  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File();

  uint64_t size_bytes() const;
  const std::filesystem::path& path() const { return path_; }
  int descriptor() const { return descriptor_; }

  /// Fills `out` from `offset`; an early end of file or an I/O error throws kEnvironment.
  void read_at(std::span<std::byte> out, uint64_t offset) const;
  void write_at(std::span<const std::byte> data, uint64_t offset);
  /// Reserves the final size, so that a full disk shows before the first byte is written.
  void allocate(uint64_t size_bytes);
  /// fsync.
  void sync();
  /// fdatasync: the bytes and the size.
  void sync_data();
  /// Lets go of the page cache of a range that is clean. A hint; never fails.
  void drop_cache(uint64_t offset, uint64_t size_bytes) const;
  /// Starts, and with `wait` completes, writing a range to the disk. A hint: only `sync` promises.
  void start_writing(uint64_t offset, uint64_t size_bytes, bool wait) const;

 private:
  File(int descriptor, std::filesystem::path path);
  static File open_existing(const std::filesystem::path& path, int flags);

  /// How much is done after a transfer: one past the page cache that ends inside a block has to go
  /// on from the block's start.
  size_t advance(size_t done, size_t transferred) const;

  int descriptor_ = -1;
  bool direct_ = false;
  std::filesystem::path path_;
};

/// A whole file mapped read-only. Immutable after open; safe to share. Views into `bytes()` live
/// no longer than the mapping.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  std::filesystem::path path_;
};

/// The whole of a small text file. Refuses (kInvalidInput) one longer than `max_bytes`.
std::string read_text_file(const std::filesystem::path& path, uint64_t max_bytes);

}  // namespace llmctl
