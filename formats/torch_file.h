// Files that torch.save writes: the zip format and the older stream, read without running anything.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "formats/checkpoint.h"
#include "formats/core/file.h"
#include "formats/pickle.h"

namespace llmctl::formats {

/// Whether the first bytes are those of a torch zip or a legacy stream. Never throws.
bool is_torch_file(const std::filesystem::path& path);

/// Appends every tensor reachable from the top-level dict of `path` (nested dicts joined by ".")
/// to `out`, with `file` as its file index. Only headers and pickles are read, never a payload.
/// Throws kInvalidInput on anything malformed, suspicious or unsupported (naming TorchScript,
/// compressed entries, sparse and quantised tensors, Git LFS pointers for what they are).
void read_torch_file(const std::filesystem::path& path, int file, std::vector<StoredTensor>& out,
                     std::vector<std::string>& notes);

/// One open file: its pickle as a tree, and where its storages lie. For readers that need more than
/// a list of tensors, such as the `args` of a Megatron checkpoint. Owns the mapping that the tree
/// points into. Immutable after open; safe to share.
class TorchFile {
 public:
  /// Reads headers and pickles. Errors as read_torch_file; tensors are judged by `resolve`.
  static TorchFile open(const std::filesystem::path& path, const PickleLimits& limits = {});

  TorchFile(TorchFile&&) = default;
  TorchFile& operator=(TorchFile&&) = default;

  const std::filesystem::path& path() const { return path_; }
  PickleNode root() const { return pickle_->root(); }
  const Pickle& pickle() const { return *pickle_; }
  /// Bytes of the main pickle.
  uint64_t pickle_bytes() const { return pickle_->consumed_bytes(); }

  /// The tensor behind a kTensor node, checked to lie inside its storage and that inside the file.
  /// Throws kInvalidInput, naming `name`, when it does not or when its type is not in DType.
  StoredTensor resolve(const PickleNode& tensor, std::string name, int file) const;

  /// What read_torch_file does, for a file that is open. The tensors come in the order of the
  /// dicts. Values that are no tensors are passed over, whatever they are.
  void list_tensors(int file, std::vector<StoredTensor>& out,
                    std::vector<std::string>& notes) const;

 private:
  struct Payload {
    std::string key;
    uint64_t offset_bytes = 0, size_bytes = 0;
  };

  TorchFile() = default;
  void open_zip(const PickleLimits& limits);
  void open_legacy(const PickleLimits& limits);
  void sort_payloads();
  const Payload* find_payload(std::string_view key) const;
  [[noreturn]] void fail(const std::string& what, const std::string& hint = {}) const;

  std::filesystem::path path_;
  std::unique_ptr<MappedFile> mapping_;
  std::unique_ptr<Pickle> pickle_;
  std::vector<Payload> payloads_;  ///< sorted by key
};

}  // namespace llmctl::formats
