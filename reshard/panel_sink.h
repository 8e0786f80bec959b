// Packs matrices as panels on their way to the files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "formats/core/file.h"
#include "reshard/file_sink.h"
#include "reshard/panel_collector.h"
#include "reshard/panel_quantizer.h"
#include "reshard/plan.h"

namespace llmctl::reshard {

/// Takes tensors row-major, as a plan makes them, and hands matrices (two axes) to the files as
/// panels of 16 rows (kernels/panels.h), quantised where the plan says so. The rows of a panel that
/// arrive apart meet in memory. Thread-safe.
class PanelSink : public TensorSink {
 public:
  /// Both outlive this. The files' plans have room for PackedMatrix::num_bytes where a matrix lies.
  PanelSink(FileSink& files, const Plan& plan);
  ~PanelSink() override;

  std::optional<size_t> phase(size_t tensor, uint64_t offset_bytes) override;
  void write(size_t tensor, uint64_t offset_bytes, std::span<const std::byte> bytes) override;
  void write_unchanged(size_t tensor, uint64_t offset_bytes, std::span<const std::byte> bytes,
                       const Origin& origin) override;

  /// FileSink::adopt for bytes of the row-major tensor.
  void adopt(size_t tensor, uint64_t offset_bytes, std::span<const std::byte> bytes);
  /// Writes the panels of which a part is still to come, so that a run that is killed leaves them
  /// to the next.
  void write_fragments();
  /// Row-major bytes of a tensor from `file`, in which it starts at `start`. Of a quantised tensor
  /// they are not there any more: what is given are zeros.
  void read_back(const File& file, uint64_t start, size_t tensor, uint64_t offset_bytes,
                 std::span<std::byte> out) const;

  /// What was done to the tensors that were quantised here, in the order of the plan.
  std::vector<QuantizationError> quantization_errors() const;

 private:
  struct Matrix;
  void take(size_t tensor, uint64_t offset_bytes, std::span<const std::byte> bytes, bool adopted);
  void put(size_t tensor, Matrix& matrix, int64_t panel, std::span<const std::byte> rows,
           bool adopted);

  FileSink& files_;
  std::vector<std::unique_ptr<Matrix>> matrices_;  // by tensor; null for vectors
};

}  // namespace llmctl::reshard
