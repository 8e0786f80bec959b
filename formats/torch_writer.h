// Lays out the zip archives that torch.load reads.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "formats/checkpoint.h"

namespace llmctl::formats {

/// One storage of the archive: entry data/K for the K-th.
struct TorchStorage {
  int tensor = 0;  ///< index that its Placement gets; -1: `bytes` are what it holds
  uint64_t size_bytes = 0;
  std::string bytes = {};
};

/// Lays out `root`/data.pkl, byteorder, data/0 .. data/(n - 1) and version as stored entries, each
/// storage at a multiple of 64 bytes (of 4096 from 64 KiB on, for direct I/O), with zip64 records;
/// the CRC-32s are left to whoever writes the payloads: torch does not look at them, Python's
/// zipfile and others do. The same arguments give the same bytes.
/// `pickle` refers to the storages by number, as PickleWriter::tensor writes it. Throws kUsage when
/// the sizes overflow or `root` is no plain name of at most 1000 bytes.
FilePlan place_torch_zip(const std::string& file_name, const std::string& pickle,
                         std::span<const TorchStorage> storages,
                         const std::string& root = "archive");

/// The same for a flat dict of tensors: one storage each, in their order, which torch.load reads
/// with weights_only too.
FilePlan place_torch_state_dict(const std::string& file_name, std::span<const TargetTensor> tensors,
                                const std::string& root = "archive");

}  // namespace llmctl::formats
