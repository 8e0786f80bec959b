// Target files being written: literal bytes, and tensors at their places.
#pragma once

#include <atomic>
#include <deque>
#include <filesystem>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "formats/checkpoint.h"
#include "formats/core/block_digest.h"
#include "formats/core/file.h"
#include "reshard/executor.h"

namespace llmctl::reshard {

enum class WriteMode {
  kDirect,    ///< past the page cache, in whole pages
  kWindowed,  ///< through it; what was written some 64 MiB ago is waited for and leaves it
  kCached,    ///< through it, and left there for whoever reads the result next
};
/// "O_DIRECT", "buffered in windows", "buffered".
std::string_view write_mode_name(WriteMode mode);

/// How a job writes best into an existing directory: small results stay in the page cache; for
/// large ones a block is written past it, to see whether the file system can.
WriteMode choose_write_mode(const std::filesystem::path& directory, bool large);

/// What becomes of a file that is there already: an error, or it is written on, its size corrected;
/// or all are there already, made by another process that writes them too.
enum class Existing { kRefuse, kWriteOn, kShare };

struct FileDigest {
  std::string name;  ///< FilePlan::name
  uint64_t size_bytes = 0;
  std::string digest;  ///< BlockDigest::hex of the whole file
};

/// Writes tensors into the files of a list of FilePlans. All files are created by the constructor,
/// with their final sizes reserved, so that a full disk shows before the first byte; few of them
/// are open at a time. A file is complete, digested and closed when its last tensor is. Digests and
/// CRC-32s are taken of the bytes as they pass. Thread-safe.
///
/// Several processes can write the same files, each bytes of its own: one makes them, the others
/// open them (kShare); at the end these hand over what they know of files that are not complete
/// without the others' bytes (hand_over), and the one takes it (take_over) and finishes.
class FileSink : public TensorSink {
 public:
  /// `directory` exists and is empty as far as the plans' names go; folders in names are made.
  /// Throws kEnvironment when the disk is full or a file cannot be made.
  FileSink(std::filesystem::path directory, std::vector<formats::FilePlan> files,
           size_t num_tensors, WriteMode mode, Existing existing = Existing::kRefuse);
  /// Chooses the mode: for a large job that is to leave the page cache alone, or a small one.
  FileSink(std::filesystem::path directory, std::vector<formats::FilePlan> files,
           size_t num_tensors, bool leave_page_cache);
  ~FileSink() override;

  std::optional<size_t> phase(size_t tensor, uint64_t offset_bytes) override;
  void write(size_t tensor, uint64_t offset_bytes, std::span<const std::byte> bytes) override;
  void write_unchanged(size_t tensor, uint64_t offset_bytes, std::span<const std::byte> bytes,
                       const Origin& origin) override;
  /// Counts bytes as written that an earlier run has written there, as a digest has shown.
  void adopt(size_t tensor, uint64_t offset_bytes, std::span<const std::byte> bytes);
  /// Writes the pages that are held in memory because a part of them is still to come, as far as
  /// they are there, so that a run that is killed leaves them to the next.
  void write_fragments();

  /// Writes bytes that will be written again once more of them are known: they count for nothing.
  void write_ahead(size_t tensor, uint64_t offset_bytes, std::span<const std::byte> bytes);

  /// After this process's last tensor, where another one finishes: flushes what was written to the
  /// disk and returns what the other needs. Nothing may be called after it.
  std::string hand_over();
  /// What another process's hand_over has returned.
  void take_over(std::string_view state);

  /// After the last tensor: writes files that hold no tensor, checks that every byte of every file
  /// was written (kInternal otherwise) and flushes them all, and their directories, to the disk.
  void finish();
  /// In the order of the plans. Requires: finish() has returned.
  std::vector<FileDigest> digests() const;
  WriteMode mode() const { return mode_; }
  /// Bytes that were not written because the target shares them with the source.
  uint64_t shared_bytes() const { return shared_bytes_; }

  /// Called when a file is complete, from any worker: its place in the list of plans. On the disk
  /// it is only after finish(). Set before the first write.
  std::function<void(size_t file)> on_complete;

 private:
  struct Target;
  struct Opened;

  void create(Target& target, Existing existing);
  void drop_fragments(Target& target);
  void merge_crc(Target& target, size_t tensor, uint64_t offset, uint64_t size_bytes, uint32_t crc);
  void take(size_t tensor, uint64_t offset_bytes, std::span<const std::byte> bytes, bool on_disk,
            const Origin* origin = nullptr);
  std::shared_ptr<Opened> opened(Target& target);
  void put(Target& target, Opened& file, uint64_t offset, std::span<const std::byte> bytes,
           bool on_disk = false, const Origin* origin = nullptr);
  bool share_blocks(Opened& file, uint64_t offset, uint64_t size_bytes, const Origin& origin);
  void put_fragment(Target& target, Opened& file, uint64_t offset,
                    std::span<const std::byte> bytes);
  void count_written(Target& target, Opened& file, uint64_t bytes);
  void complete(Target& target, Opened& file);
  void add_crc(Target& target, size_t tensor, uint64_t offset, std::span<const std::byte> bytes);
  void pass_on(std::shared_ptr<Opened> file, uint64_t offset_bytes, uint64_t size_bytes);

  std::filesystem::path directory_;
  WriteMode mode_;
  std::vector<std::unique_ptr<Target>> targets_;
  struct Place {
    size_t file = 0;
    uint64_t offset_bytes = 0;
  };
  std::vector<Place> places_;

  std::mutex open_mutex_;  // guards open_; most recently used first
  std::list<std::pair<Target*, std::shared_ptr<Opened>>> open_;

  std::atomic<bool> shares_{false};  ///< whether sharing blocks has not failed yet
  std::atomic<uint64_t> shared_bytes_{0};

  /// Incomplete pages held in memory, over all files.
  std::atomic<size_t> held_pages_{0};

  /// A written range on its way to the disk.
  struct Written {
    std::shared_ptr<Opened> file;
    uint64_t offset_bytes = 0, size_bytes = 0;
  };
  std::mutex way_mutex_;  // guards the two below
  std::deque<Written> on_the_way_;
  uint64_t bytes_on_the_way_ = 0;
};

}  // namespace llmctl::reshard
