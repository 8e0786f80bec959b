// Safetensors files: header reader and layout of files to be written (docs/formats/safetensors.md).
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "formats/checkpoint.h"

namespace llmctl::formats {

/// Appends every tensor of `path` to `out` in the order of their data, with `file` as file index.
/// Only the header is read, window by window; nothing is appended unless all of it is valid:
/// length, JSON, dtypes, shapes, sizes, no name twice, no hole, no overlap, no byte left over.
/// Throws kInvalidInput otherwise, naming Git LFS pointers for what they are. Source:
/// safetensors/src/tensor.rs, `Metadata::validate`.
void read_safetensors(const std::filesystem::path& path, int file, std::vector<StoredTensor>& out);

/// Texts of `__metadata__`, by key.
using SafetensorsMetadata = std::map<std::string, std::string>;

/// The same from a file that may be encoded. Returns the metadata, refusing texts above 4,096
/// bytes.
SafetensorsMetadata read_safetensors(const CheckpointFile& source, int file,
                                     std::vector<StoredTensor>& out);

/// The same for a whole file in memory; `where` names it in messages.
void parse_safetensors(std::span<const std::byte> bytes, const std::string& where, int file,
                       std::vector<StoredTensor>& out);

/// Whether `path` starts as a safetensors file does: a plausible length and '{'. Never throws.
bool is_safetensors_file(const std::filesystem::path& path);

/// Lays `tensors` out in `model.safetensors`, or, when they pass `max_shard_bytes`, in
/// `model-00001-of-0000N.safetensors` and so on with `model.safetensors.index.json`. Files are
/// those of the Python library, byte for byte: tensors by dtype then name, shards filled in the
/// given order. Throws kInvalidInput on a name that JSON cannot hold, kInternal on a name given
/// twice.
std::vector<FilePlan> place_safetensors(std::span<const TargetTensor> tensors,
                                        const WriteOptions& options);

}  // namespace llmctl::formats
