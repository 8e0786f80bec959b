// Any checkpoint to any format that llmctl writes: prepared as a plan, then carried out.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "formats/checkpoint.h"
#include "formats/core/dtype.h"
#include "formats/export.h"
#include "kernels/quantization.h"
#include "reshard/executor.h"
#include "reshard/model.h"
#include "reshard/output.h"

namespace llmctl::reshard {

enum class OnOverflow { kInf, kClamp, kError };

/// Random weights in place of a source.
struct SynthSource {
  const Family* family = nullptr;
  ModelConfig config;
  DType dtype = DType::F32;
  uint64_t seed = 0;
  bool sparse = false;  ///< zeros that take no room on the disk, where tensors lie
};

struct ConvertOptions {
  std::filesystem::path source;
  std::optional<SynthSource> synth;  ///< `source` is then a name for messages
  /// FasterTransformer: the directory that receives <tp>-gpu, unless it is called that itself.
  std::filesystem::path destination;
  std::string format;  ///< name in kFormats: "hf", "ft", "megatron", "export"
  formats::MatrixLayout matrix_layout = formats::MatrixLayout::kPanels16;  ///< exports only
  bool compress = false;  ///< exports only: ranks' files with zstd
  /// Exports only; nothing: as in the source. Bits 0: not quantised.
  std::optional<kernels::Quantization> quantization;
  int64_t tp = 1;
  int64_t pp = 1, virtual_pp = 1;        ///< Megatron only
  std::vector<int64_t> pipeline_blocks;  ///< layers of each stage; empty: even, or as in the source
  std::optional<std::string> megatron_names;    ///< "legacy" or "core"; absent: as in the source
  bool keep_pipeline = false;                   ///< stages as in the source, whatever pp says
  bool keep_rng = false;                        ///< Megatron to Megatron
  std::map<std::string, std::string> settings;  ///< OpenOptions::settings
  std::optional<DType> dtype;                   ///< absent: as stored
  OnOverflow on_overflow = OnOverflow::kInf;
  bool ft_exact = false;  ///< config.ini as FasterTransformer's converters write it, nothing beside
  std::string model_name;  ///< config.ini's label; empty: from the source
  uint64_t max_shard_bytes = uint64_t{5} * 1000 * 1000 * 1000;
  int jobs = 1;
  uint64_t max_memory = uint64_t{512} << 20;
  std::filesystem::path family_file;
  bool overwrite = false;
  bool plan_only = false;  ///< an existing destination or too small a disk is no error
  Verify verify = Verify::kPass;
  bool resume = false;            ///< OutputJob::resume
  ProcessGroup* group = nullptr;  ///< OutputJob::group
};

/// Name of the format of the checkpoint at `path`. Throws what read_checkpoint throws.
std::string format_of(const std::filesystem::path& path);

using ConvertSummary = OutputSummary;

/// A conversion ready to run. Nothing has been written. Not thread-safe.
class Conversion {
 public:
  /// Reads and checks the source and plans everything. Throws what open_model throws; kUsage when
  /// the request is impossible (tp does not fit, format cannot be written, an existing destination
  /// without overwrite), kEnvironment when disk space, permission or memory is lacking.
  explicit Conversion(ConvertOptions options);
  ~Conversion();
  Conversion(const Conversion&) = delete;
  Conversion& operator=(const Conversion&) = delete;

  const Model& model() const;
  const Plan& plan() const;
  /// Where the result will stand.
  const std::filesystem::path& target_path() const;
  uint64_t bytes_to_write() const;
  /// One line per target tensor: where it comes from, shapes, dtypes; then totals. For --dry-run.
  std::string describe() const;
  /// Model notes, and what the target cannot say, one line each.
  const std::vector<std::string>& notes() const;

  /// Writes. On any error nothing stands at the target path that did not stand there before.
  ConvertSummary run(const std::function<void(uint64_t bytes)>& progress = {});

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace llmctl::reshard
