// Files compressed in independent frames with an index at the end: zstd's seekable format.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

#include "formats/core/thread_pool.h"
#include "formats/file_decoder.h"

namespace llmctl::formats {

/// Bytes that one frame holds at most: what a reader needs in memory.
inline constexpr uint64_t kZstdFrameBytes = uint64_t{1} << 20;

/// Compresses `source` to the new file `target`, which `zstd -d` turns into `source` again. Frames
/// hold up to kZstdFrameBytes and begin at every offset of `cuts` (sorted). The same bytes for any
/// number of threads. The target is on the disk when this returns. Throws kEnvironment when reading
/// or writing fails. Memory: some 8 MiB a thread. Source of the format:
/// contrib/seekable_format/zstd_seekable_compression_format.md of github.com/facebook/zstd.
void compress_zstd(const std::filesystem::path& source, const std::filesystem::path& target,
                   const std::vector<uint64_t>& cuts, ThreadPool& pool);

/// Reads any range of such a file, frame by frame; every frame has a checksum. Memory: one frame a
/// thread. Immutable after open; safe to share.
class ZstdFile : public FileDecoder {
 public:
  /// Reads and checks the index. Throws kInvalidInput for a file without one, or one that does not
  /// fit the file; frames above 16 MiB are refused.
  explicit ZstdFile(const std::filesystem::path& path);

  uint64_t size_bytes() const override { return frames_.back().offset; }
  void read_at(std::span<std::byte> out, uint64_t offset) const override;

 private:
  struct Frame {
    uint64_t at = 0;      ///< in the file
    uint64_t offset = 0;  ///< decompressed
  };
  void decompress(size_t frame, std::span<std::byte> out) const;

  File file_;
  uint64_t id_ = 0;            // tells files apart in what threads remember
  std::vector<Frame> frames_;  // and one behind the last
};

}  // namespace llmctl::formats
