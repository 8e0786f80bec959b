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
  int tensor = 0;  ///< index that its Placement gets
  uint64_t size_bytes = 0;
};

/// Where the CRC-32 of a storage's bytes belongs, four bytes little-endian, in the file.
struct CrcPatch {
  int storage = 0;
  uint64_t local_offset_bytes = 0, directory_offset_bytes = 0;
};

/// A torch zip file to be written. The literals hold zero for the CRCs of the storages; torch does
/// not look at them, Python's zipfile and others do, so the writer of the payloads patches them.
struct TorchZipPlan {
  FilePlan file;
  std::vector<CrcPatch> crc_patches;
};

/// Lays out `root`/data.pkl, byteorder, data/0 .. data/(n - 1) and version as stored entries, each
/// storage at a multiple of 64 bytes, with zip64 records. The same arguments give the same bytes.
/// `pickle` refers to the storages by number, as PickleWriter::tensor writes it. Throws kUsage when
/// the sizes overflow or `root` is no plain name of at most 1000 bytes.
TorchZipPlan place_torch_zip(const std::string& file_name, const std::string& pickle,
                             std::span<const TorchStorage> storages,
                             const std::string& root = "archive");

/// The same for a flat dict of tensors: one storage each, in their order, which torch.load reads
/// with weights_only too.
TorchZipPlan place_torch_state_dict(const std::string& file_name,
                                    std::span<const TargetTensor> tensors,
                                    const std::string& root = "archive");

}  // namespace llmctl::formats
