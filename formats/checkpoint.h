// What every reader hands up: a checkpoint as named tensors inside files, and its metadata.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "formats/core/checked.h"
#include "formats/core/dtype.h"

namespace llmctl::formats {

class FileDecoder;  // formats/file_decoder.h

struct CheckpointFile {
  std::filesystem::path path;
  uint64_t size_bytes = 0;  ///< on the disk
  /// Gives the bytes that tensors' offsets count in; null: they are the file's own.
  std::shared_ptr<const FileDecoder> decoder = nullptr;
};

/// One tensor as it lies in a file. Nothing is copied: the bytes are `files[file]`, decoded, from
/// `offset_bytes`, which readers have checked to hold every element.
struct StoredTensor {
  std::string name;  ///< as in the checkpoint, without a rank suffix
  DType dtype = DType::F32;
  Shape shape;                   ///< FasterTransformer files have none: one axis of all elements
  std::vector<int64_t> strides;  ///< in elements; empty means row-major
  int file = 0;                  ///< index into Checkpoint::files
  uint64_t offset_bytes = 0;     ///< of element (0, ..., 0)
  int tp_rank = -1;              ///< -1: the tensor is whole on every rank
  int pp_rank = -1;              ///< -1: the format does not split layers over stages

  int64_t num_elements() const;
  uint64_t num_bytes() const;  ///< of a dense copy
  bool is_contiguous() const;
};

struct MegatronInfo;  // formats/megatron.h

/// A readable checkpoint. Immutable after a reader returned it; safe to share.
struct Checkpoint {
  std::string format;          ///< name of its row in kFormats
  std::filesystem::path path;  ///< as the user gave it
  std::vector<CheckpointFile> files;
  std::vector<StoredTensor> tensors;
  int tensor_parallel_size = 1;
  int pipeline_parallel_size = 1;
  /// Small metadata files by name ("config.json", "config.ini", ...), unparsed.
  std::map<std::string, std::string> texts;
  /// Files that go with the weights and are carried along unchanged: tokenizer, generation
  /// config, chat template. Absolute or relative paths that can be opened.
  std::vector<std::filesystem::path> side_files;
  /// Things the user should know that are no reason to refuse, one line each.
  std::vector<std::string> notes;
  /// Parts of the files that are no weights, by name, and why they are not needed.
  std::vector<std::pair<std::string, std::string>> dropped;
  /// What a Megatron directory says besides its tensors; null for other formats.
  std::shared_ptr<const MegatronInfo> megatron;
};

/// A tensor that a writer is asked to place. The executor fills its bytes later.
struct TargetTensor {
  std::string name;
  DType dtype = DType::F32;
  Shape shape;
  int tp_rank = -1;
  int pp_rank = -1;
};

/// Where one target tensor's bytes go.
struct Placement {
  int tensor = 0;  ///< index into the list of target tensors
  uint64_t offset_bytes = 0;
};

/// One file to be written: literal bytes (headers, JSON, INI) and tensor payloads, which together
/// cover [0, size_bytes) without overlap.
struct FilePlan {
  std::string name;  ///< relative to the output directory; may have folders in it
  uint64_t size_bytes = 0;
  struct Literal {
    uint64_t offset_bytes = 0;
    std::string bytes;
  };
  std::vector<Literal> literals;
  std::vector<Placement> placements;
  /// The CRC-32 of a tensor's bytes, wanted as four bytes little-endian inside two literals, which
  /// hold zero there (zip archives).
  struct CrcPatch {
    int tensor = 0;  ///< index into the list of target tensors
    uint64_t local_offset_bytes = 0, directory_offset_bytes = 0;
  };
  std::vector<CrcPatch> crc_patches;
};

struct MegatronWriteOptions;  // formats/megatron_writer.h
struct ExportWriteOptions;    // formats/export.h

struct WriteOptions {
  uint64_t max_shard_bytes = uint64_t{5} * 1000 * 1000 * 1000;
  std::shared_ptr<const MegatronWriteOptions> megatron = nullptr;  ///< required by that format
  std::shared_ptr<const ExportWriteOptions> exported = nullptr;    ///< required by that format
};

}  // namespace llmctl::formats
