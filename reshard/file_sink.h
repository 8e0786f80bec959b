// Target files being written: literal bytes, and tensors at their places.
#pragma once

#include <atomic>
#include <deque>
#include <filesystem>
#include <memory>
#include <mutex>
#include <vector>

#include "formats/checkpoint.h"
#include "formats/core/file.h"
#include "reshard/executor.h"

namespace llmctl::reshard {

/// Writes tensors into the files of a list of FilePlans. A file is created at its first byte, with
/// its final size reserved, and closed after its last, so that thousands of files need few
/// descriptors. Thread-safe.
class FileSink : public TensorSink {
 public:
  /// With `leave_page_cache`, what was written some 64 MiB ago is waited for and leaves the cache.
  FileSink(std::filesystem::path directory, std::vector<formats::FilePlan> files,
           size_t num_tensors, bool leave_page_cache);
  ~FileSink() override;

  void write(size_t tensor, uint64_t offset_bytes, std::span<const std::byte> bytes) override;

  /// After the last tensor: writes files that hold no tensor, checks that every byte of every file
  /// was written (kInternal otherwise) and flushes them all to the disk.
  void finish();

 private:
  struct Target;
  std::shared_ptr<File> opened(Target& target);
  void pass_on(std::shared_ptr<File> file, uint64_t offset_bytes, uint64_t size_bytes);

  std::filesystem::path directory_;
  std::vector<std::unique_ptr<Target>> targets_;
  struct Place {
    size_t file = 0;
    uint64_t offset_bytes = 0;
  };
  std::vector<Place> places_;

  /// A written range on its way to the disk.
  struct Written {
    std::shared_ptr<File> file;
    uint64_t offset_bytes = 0, size_bytes = 0;
  };
  bool leave_page_cache_;
  std::mutex mutex_;  // guards the two below
  std::deque<Written> on_the_way_;
  uint64_t bytes_on_the_way_ = 0;
};

}  // namespace llmctl::reshard
