// Row-major matrices read from a file that holds them as panels.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <vector>

#include "formats/checkpoint.h"
#include "formats/core/dtype.h"
#include "formats/file_decoder.h"
#include "kernels/quantization.h"

namespace llmctl::reshard {

/// A matrix of which 16 rows at a time are one panel (kernels/panels.h, kernels/quantized.h).
struct PackedMatrix {
  DType dtype = DType::F32;  ///< of the rows; read from quantised panels they are F32
  int64_t rows = 0, columns = 0;
  kernels::Quantization quantization = {};
  uint64_t file_offset = 0;  ///< PanelFile: where the panels begin in the file

  uint64_t row_bytes() const;    ///< of one row, row-major
  uint64_t panel_bytes() const;  ///< of 16 rows, packed
  uint64_t num_bytes() const;    ///< of the whole matrix, packed
  /// Rows of panel `panel`: 16, or what the last one has.
  int64_t rows_of(int64_t panel) const;
};

/// Calls read(out, offset) for packed bytes of the matrix, offsets counted from its start, and
/// fills `out` with row-major bytes from `offset`. Memory: a few panels a thread.
void read_rows(const PackedMatrix& matrix, uint64_t offset, std::span<std::byte> out,
               const std::function<void(std::span<std::byte> out, uint64_t offset)>& read);

/// A file in which some matrices are packed. A matrix of panels takes no less than its rows do, so
/// each begins where it lies, and row r is found r * row_bytes behind. Rows of a quantised one take
/// more than its panels: their place is behind the end of the file.
class PanelFile : public formats::FileDecoder {
 public:
  /// `file` may have a decoder of its own. `matrices` by where their rows begin.
  PanelFile(formats::CheckpointFile file, std::map<uint64_t, PackedMatrix> matrices);

  uint64_t size_bytes() const override;
  void read_at(std::span<std::byte> out, uint64_t offset) const override;

  /// Whether the file on the disk has the panels as they are, so that a mapping can be used.
  bool is_mappable() const { return file_.decoder == nullptr; }
  /// The matrix whose rows begin at `offset`; null when none do.
  const PackedMatrix* find(uint64_t offset) const;
  /// The scales (rows, blocks) of one of them that is quantised. Reads all of it.
  std::vector<float> read_scales(const PackedMatrix& matrix) const;

 private:
  uint64_t packed_size() const;

  formats::CheckpointFile file_;
  formats::TensorFile opened_;
  std::map<uint64_t, PackedMatrix> matrices_;
};

}  // namespace llmctl::reshard
