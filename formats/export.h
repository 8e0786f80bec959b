// llmctl's inference model: model.json and one safetensors file per rank (docs/formats/export.md).
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/checkpoint.h"

namespace llmctl::formats {

inline constexpr const char* kExportConfig = "model.json";
inline constexpr int kExportVersion = 1;
/// Of exports whose matrices are quantised, so that programs that do not know that refuse them.
inline constexpr int kQuantizedExportVersion = 2;
/// Where tensors start in a rank's file, so that a mapping can be used in place.
inline constexpr uint64_t kExportAlignment = 64;

/// How matrices lie in the files.
enum class MatrixLayout {
  kRows,      ///< row-major
  kPanels16,  ///< 16 rows interleaved, as the CPU's products read them
};
/// As model.json spells it: "rows", "panels16".
std::string_view matrix_layout_name(MatrixLayout layout);

/// "rank-00003.safetensors".
std::string export_file_name(int rank);
/// Behind that name where the file is compressed (formats/zstd_file.h).
inline constexpr std::string_view kCompressedSuffix = ".zst";

/// The layout that model.json names. Throws kInvalidInput for another one.
MatrixLayout read_matrix_layout(const std::string& name, const std::string& where);

/// What place_export needs beside the tensors.
struct ExportWriteOptions {
  int tp = 1, pp = 1;
  MatrixLayout layout = MatrixLayout::kRows;
  bool compressed = false;  ///< files are compressed afterwards
  /// Ties the files to each other and to model.json.
  std::string id;
};

/// Whether `path` is a directory with a model.json of this format, or that file. Never throws.
bool detect_export(const std::filesystem::path& path);

/// Reads model.json and the headers of all ranks' files. `texts` holds model.json, whose `config`
/// is the business of reshard/; so are panels, which have the four axes (panel, group of columns,
/// row, column). Every tensor has both ranks. Throws kInvalidInput for another
/// version, for a rank's file that is missing, too many, of another size or of another export, and
/// for what read_safetensors refuses.
Checkpoint read_export(const std::filesystem::path& path);

/// Lays tensors out in one file per rank, in the given order, each at a multiple of 64 bytes; the
/// gaps are filled with tensors "padding.N", because safetensors files have none. Requires: every
/// tensor has both ranks, options.exported is set. model.json is not among the files.
std::vector<FilePlan> place_export(std::span<const TargetTensor> tensors,
                                   const WriteOptions& options);

}  // namespace llmctl::formats
