// How fast a job will go, from a second of its own pattern on the disks it will use.
#pragma once

#include <filesystem>

#include "reshard/file_sink.h"

namespace llmctl::reshard {

struct DiskRate {
  /// Bytes moved per second: those read and those written added up.
  double low = 0, high = 0;
  WriteMode mode = WriteMode::kDirect;  ///< that a large job would use in this directory
};

/// Reads slabs of `source` and writes them to a temporary file in `target_directory`, with the
/// threads and in the mode of a large job, for about `seconds`; the file is gone afterwards. Takes
/// at most 256 MiB of disk. The two ends allow for what a disk that is shared, and a job that
/// transforms, were seen to differ by. Throws as File does.
DiskRate probe_disk(const std::filesystem::path& source,
                    const std::filesystem::path& target_directory, double seconds, int jobs);

}  // namespace llmctl::reshard
