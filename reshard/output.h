// From a plan to a directory on disk that stands complete, verified and with its manifest, or not
// at all.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "formats/checkpoint.h"
#include "formats/core/process_group.h"
#include "kernels/convert.h"
#include "reshard/executor.h"
#include "reshard/manifest.h"
#include "reshard/panel_quantizer.h"
#include "reshard/plan.h"

namespace llmctl::reshard {

enum class Verify {
  kNone,
  kPass,      ///< source and target digested in passing, and compared
  kReadback,  ///< and the finished output read again from the disk, before it is published
};

struct OutputJob {
  const Plan* plan = nullptr;  ///< outlives the job
  std::vector<formats::FilePlan> files;
  std::vector<std::filesystem::path> side_files;  ///< copied beside the files
  std::filesystem::path target;                   ///< the directory to appear
  bool overwrite = false;
  int jobs = 1;
  uint64_t max_memory = uint64_t{512} << 20;
  kernels::Overflow overflow = kernels::Overflow::kInf;
  bool overflow_is_error = false;
  Verify verify = Verify::kPass;
  OpenOptions read_back;  ///< how to read the output again
  /// Continues what a killed or failed run of the same job has left; starts when there is nothing.
  bool resume = false;
  /// What of the request decides the result: name ("--to") to value. For `resume`.
  std::map<std::string, std::string> request;
  bool with_manifest = true;
  /// Writes all tensors in the executor's place, where there is nothing to read; `verify` is then
  /// kNone.
  std::function<void(TensorSink& sink, const ExecuteOptions& options)> fill;
  bool pack_matrices = false;  ///< as panels (reshard/panel_sink.h); the files have room for that
  /// Files that hold tensors are compressed with zstd when they are complete (formats/zstd_file.h)
  /// and replaced by NAME.zst.
  bool compress = false;
  bool sparse = false;  ///< holes in place of tensors; no manifest
  std::string format;   ///< of the output; for the manifest, with `geometry`
  Geometry geometry;
  /// Processes that all have this job and see the same files, each doing a part; null: this one
  /// does it alone. Not with `fill`.
  ProcessGroup* group = nullptr;

  uint64_t bytes_to_write() const;
};

struct OutputSummary {
  uint64_t bytes_read = 0, bytes_written = 0;
  size_t num_tensors = 0, num_files = 0;
  std::vector<std::pair<std::string, uint64_t>> overflows;  ///< tensor and count
  std::vector<std::string> notes;                           ///< for the user, one line each
  std::vector<QuantizationError> quantization_errors;       ///< of quantised tensors, in order
};

/// Throws kEnvironment for what would fail for certain: disk space, permission, memory.
void check_resources(const OutputJob& job);

/// Writes. On any error nothing stands at the target that did not stand there before; the hidden
/// folder beside it stays when the job was to resume or a GiB of its work is done. Throws kUsage
/// when it is to resume and the source or the request are not those of the earlier run, and what
/// execute and AtomicDirectory throw; kInternal when source and target differ, kEnvironment when
/// what is read back is not what was written.
///
/// With a group: collective; every rank returns once the output stands, rank 0 with the summary of
/// all. When one fails, all throw, the same Error, and rank 0 clears up once all have stopped.
OutputSummary write_output(const OutputJob& job,
                           const std::function<void(uint64_t bytes)>& progress = {});

}  // namespace llmctl::reshard
