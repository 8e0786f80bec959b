// Files that torch.save writes: the zip format and the older stream, read without running anything.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "formats/checkpoint.h"

namespace llmctl::formats {

/// Whether the first bytes are those of a torch zip or a legacy stream. Never throws.
bool is_torch_file(const std::filesystem::path& path);

/// Appends every tensor reachable from the top-level dict of `path` (nested dicts joined by ".")
/// to `out`, with `file` as its file index. Only headers and pickles are read, never a payload.
/// Throws kInvalidInput on anything malformed, suspicious or unsupported (naming TorchScript,
/// compressed entries, sparse and quantised tensors, Git LFS pointers for what they are).
void read_torch_file(const std::filesystem::path& path, int file, std::vector<StoredTensor>& out,
                     std::vector<std::string>& notes);

}  // namespace llmctl::formats
