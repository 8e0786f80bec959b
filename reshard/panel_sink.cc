#include "reshard/panel_sink.h"

#include <algorithm>
#include <cstring>

#include "formats/core/aligned_buffer.h"
#include "kernels/panels.h"
#include "reshard/panel_file.h"

namespace llmctl::reshard {
namespace {

using kernels::kPanelRows;

/// Memory for packed panels, at the place within a page that a direct write wants.
std::byte* scratch(uint64_t bytes, size_t phase) {
  static thread_local AlignedBuffer buffer;
  if (buffer.size() < bytes + kDirectAlignment) {
    buffer = AlignedBuffer();
    buffer = AlignedBuffer(static_cast<size_t>(bytes) + kDirectAlignment);
  }
  return buffer.data() + phase;
}

}  // namespace

struct PanelSink::Matrix {
  explicit Matrix(const PackedMatrix& shape) : collector(shape) {}
  PanelCollector collector;
  std::unique_ptr<PanelQuantizer> quantizer;  // null: as it is
};

PanelSink::PanelSink(FileSink& files, const Plan& plan)
    : files_(files), matrices_(plan.tensors.size()) {
  for (size_t i = 0; i < matrices_.size(); ++i) {
    const PlannedTensor& planned = plan.tensors[i];
    const formats::TargetTensor& target = planned.target;
    if (target.shape.size() != 2) continue;
    matrices_[i] = std::make_unique<Matrix>(
        PackedMatrix{target.dtype, target.shape[0], target.shape[1], planned.quantization});
    if (planned.quantization) matrices_[i]->quantizer = std::make_unique<PanelQuantizer>(plan, i);
  }
}

PanelSink::~PanelSink() = default;

std::optional<size_t> PanelSink::phase(size_t tensor, uint64_t offset_bytes) {
  return matrices_[tensor] ? std::nullopt : files_.phase(tensor, offset_bytes);
}

void PanelSink::write(size_t tensor, uint64_t offset_bytes, std::span<const std::byte> bytes) {
  if (!matrices_[tensor]) return files_.write(tensor, offset_bytes, bytes);
  take(tensor, offset_bytes, bytes, false);
}

void PanelSink::write_unchanged(size_t tensor, uint64_t offset_bytes,
                                std::span<const std::byte> bytes, const Origin& origin) {
  if (!matrices_[tensor]) return files_.write_unchanged(tensor, offset_bytes, bytes, origin);
  take(tensor, offset_bytes, bytes, false);
}

void PanelSink::adopt(size_t tensor, uint64_t offset_bytes, std::span<const std::byte> bytes) {
  if (!matrices_[tensor]) return files_.adopt(tensor, offset_bytes, bytes);
  take(tensor, offset_bytes, bytes, true);
}

void PanelSink::take(size_t tensor, uint64_t offset_bytes, std::span<const std::byte> bytes,
                     bool adopted) {
  Matrix& matrix = *matrices_[tensor];
  matrix.collector.take(offset_bytes, bytes,
                        [&](int64_t panel, std::span<const std::byte> rows, bool at_once) {
                          // What came in parts is written even when an earlier run had all of it:
                          // that is known of its parts alone.
                          put(tensor, matrix, panel, rows, adopted && at_once);
                        });
}

void PanelSink::put(size_t tensor, Matrix& matrix, int64_t panel, std::span<const std::byte> rows,
                    bool adopted) {
  const PackedMatrix& shape = matrix.collector.shape();
  const auto num_rows = static_cast<int64_t>(rows.size() / shape.row_bytes());
  const int64_t panels = (num_rows + kPanelRows - 1) / kPanelRows;
  const uint64_t size = static_cast<uint64_t>(panels) * shape.panel_bytes();
  const uint64_t offset = static_cast<uint64_t>(panel) * shape.panel_bytes();
  std::byte* packed = scratch(size, files_.phase(tensor, offset).value_or(0));
  if (matrix.quantizer) {
    matrix.quantizer->quantize(packed, panel, rows);
  } else {
    kernels::pack_panels(packed, rows.data(), shape.dtype, num_rows, shape.columns);
  }
  if (adopted) {
    files_.adopt(tensor, offset, {packed, static_cast<size_t>(size)});
  } else {
    files_.write(tensor, offset, {packed, static_cast<size_t>(size)});
  }
}

void PanelSink::write_fragments() {
  for (size_t tensor = 0; tensor < matrices_.size(); ++tensor) {
    // The next run reads rows back, which quantised panels do not give.
    if (!matrices_[tensor] || matrices_[tensor]->quantizer) continue;
    // A panel that becomes whole is written after its parts.
    PanelCollector& collector = matrices_[tensor]->collector;
    const PackedMatrix& shape = collector.shape();
    collector.for_each_fragment([&](int64_t panel, std::span<const std::byte> rows) {
      std::byte* packed = scratch(shape.panel_bytes(), 0);
      kernels::pack_panels(packed, rows.data(), shape.dtype, shape.rows_of(panel), shape.columns);
      files_.write_ahead(tensor, static_cast<uint64_t>(panel) * shape.panel_bytes(),
                         {packed, static_cast<size_t>(shape.panel_bytes())});
    });
  }
}

void PanelSink::read_back(const File& file, uint64_t start, size_t tensor, uint64_t offset_bytes,
                          std::span<std::byte> out) const {
  if (!matrices_[tensor]) return file.read_at(out, start + offset_bytes);
  if (matrices_[tensor]->quantizer) return std::fill(out.begin(), out.end(), std::byte{});
  read_rows(matrices_[tensor]->collector.shape(), offset_bytes, out,
            [&](std::span<std::byte> bytes, uint64_t from) { file.read_at(bytes, start + from); });
}

std::vector<QuantizationError> PanelSink::quantization_errors() const {
  std::vector<QuantizationError> errors;
  for (const auto& matrix : matrices_) {
    if (!matrix || !matrix->quantizer) continue;
    if (const auto error = matrix->quantizer->error()) errors.push_back(*error);
  }
  return errors;
}

}  // namespace llmctl::reshard
