// Hugging Face model directories: config.json with safetensors or torch weights.
#pragma once

#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "formats/checkpoint.h"

namespace llmctl::formats {

/// `*.index.json`: which tensor lies in which shard.
struct WeightIndex {
  struct Entry {
    std::string tensor;
    int shard = 0;  ///< index into `shards`
  };
  std::vector<std::string> shards;  ///< plain file names, in order of first mention
  std::vector<Entry> entries;       ///< sorted by tensor; no name twice
  bool has_total_size = false;
  uint64_t total_size = 0;  ///< metadata.total_size, when it is a whole number
};

/// Parses an index. Throws kInvalidInput (naming `where`) on malformed JSON, a name listed twice, a
/// file name that is not plain, or an index without tensors.
WeightIndex parse_weight_index(std::span<const std::byte> text, const std::string& where);

/// Whether `path` is a model directory, or a weights file, of this kind. Never throws.
bool detect_hugging_face(const std::filesystem::path& path);

/// Reads config.json and every header. `path` is the directory, or a single weights file with
/// config.json beside it. Takes model.safetensors, else its index, else pytorch_model.bin, else
/// its index, else the only *.safetensors file there is. Throws kInvalidInput on the first fault.
Checkpoint read_hugging_face(const std::filesystem::path& path);

}  // namespace llmctl::formats
