// The files of a checkpoint, read in ranges: past the page cache for large jobs, through it else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "formats/checkpoint.h"
#include "formats/core/file.h"

namespace llmctl::reshard {

/// Opens files on demand and keeps a few open; a FasterTransformer tree has thousands.
/// Thread-safe.
class SourceFiles {
 public:
  /// With `past_cache` reads bypass the page cache where the file system allows it, and give back
  /// what they brought into it where not. `checkpoint` must outlive this.
  SourceFiles(const formats::Checkpoint& checkpoint, bool past_cache)
      : checkpoint_(checkpoint), past_cache_(past_cache) {}

  /// Reads bytes [lo, hi) of a file and returns where they are: in `buffer`, which starts on a page
  /// and has read_room(hi - lo) bytes. Throws kEnvironment when the file has another size than the
  /// checkpoint says, or ends.
  std::byte* read(int file, uint64_t lo, uint64_t hi, std::byte* buffer);
  /// Reads straight to `out`, through the page cache.
  void read_to(int file, uint64_t lo, std::span<std::byte> out);

  struct Opened {
    File file;
    std::optional<File> direct;
  };
  /// Open for as long as it is held.
  std::shared_ptr<const Opened> get(int index);

 private:
  const formats::Checkpoint& checkpoint_;
  bool past_cache_;
  std::mutex mutex_;  // guards open_
  std::map<int, std::shared_ptr<const Opened>> open_;
};

}  // namespace llmctl::reshard
