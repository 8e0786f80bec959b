#include "reshard/panel_file.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "formats/core/cancel.h"
#include "kernels/quantized.h"

namespace llmctl::reshard {

using kernels::kPanelRows;

uint64_t PackedMatrix::row_bytes() const {
  return static_cast<uint64_t>(columns) * dtype_bytes(dtype);
}

uint64_t PackedMatrix::panel_bytes() const {
  return quantization ? kernels::quantized_panel_bytes(quantization, columns)
                      : kernels::panel_bytes(dtype, columns);
}

uint64_t PackedMatrix::num_bytes() const {
  if (quantization) {
    return kernels::quantized_matrix_bytes(quantization, rows, columns).value();
  }
  return kernels::matrix_panel_bytes(dtype, rows, columns).value();
}

int64_t PackedMatrix::rows_of(int64_t panel) const {
  return std::min(kPanelRows, rows - panel * kPanelRows);
}

namespace {

void unpack(std::byte* rows_data, const std::byte* panels, int64_t rows,
            const PackedMatrix& matrix) {
  if (matrix.quantization) {
    kernels::dequantize_panels(reinterpret_cast<float*>(rows_data), panels, rows, matrix.columns,
                               matrix.quantization);
  } else {
    kernels::unpack_panels(rows_data, panels, matrix.dtype, rows, matrix.columns);
  }
}

}  // namespace

void read_rows(const PackedMatrix& matrix, uint64_t offset, std::span<std::byte> out,
               const std::function<void(std::span<std::byte> out, uint64_t offset)>& read) {
  if (out.empty()) return;
  static thread_local std::vector<std::byte> packed, plain;
  const uint64_t row_bytes = matrix.row_bytes(), panel_bytes = matrix.panel_bytes();
  const uint64_t panel_rows_bytes = row_bytes * kPanelRows;
  const uint64_t end = offset + out.size();
  const auto last = static_cast<int64_t>((end - 1) / panel_rows_bytes);
  constexpr uint64_t kStepBytes = uint64_t{1} << 20;
  const auto step = static_cast<int64_t>(std::max<uint64_t>(1, kStepBytes / panel_bytes));
  for (auto panel = static_cast<int64_t>(offset / panel_rows_bytes); panel <= last; panel += step) {
    const int64_t count = std::min(step, last - panel + 1);
    packed.resize(static_cast<uint64_t>(count) * panel_bytes);
    read(packed, static_cast<uint64_t>(panel) * panel_bytes);
    const int64_t rows = std::min(count * kPanelRows, matrix.rows - panel * kPanelRows);
    const uint64_t first = static_cast<uint64_t>(panel) * panel_rows_bytes;
    const uint64_t behind = first + static_cast<uint64_t>(rows) * row_bytes;
    if (first >= offset && behind <= end) {
      unpack(out.data() + (first - offset), packed.data(), rows, matrix);
      continue;
    }
    plain.resize(static_cast<uint64_t>(rows) * row_bytes);
    unpack(plain.data(), packed.data(), rows, matrix);
    const uint64_t lo = std::max(first, offset), hi = std::min(behind, end);
    std::memcpy(out.data() + (lo - offset), plain.data() + (lo - first), hi - lo);
  }
}

PanelFile::PanelFile(formats::CheckpointFile file, std::map<uint64_t, PackedMatrix> matrices)
    : file_(std::move(file)), opened_(file_), matrices_(std::move(matrices)) {}

uint64_t PanelFile::packed_size() const {
  return file_.decoder ? file_.decoder->size_bytes() : file_.size_bytes;
}

uint64_t PanelFile::size_bytes() const {
  if (matrices_.empty()) return packed_size();
  const auto& [start, last] = *matrices_.rbegin();
  return std::max(packed_size(), start + last.row_bytes() * static_cast<uint64_t>(last.rows));
}

void PanelFile::read_at(std::span<std::byte> out, uint64_t offset) const {
  const uint64_t end = offset + out.size();
  auto next = matrices_.upper_bound(offset);
  if (next != matrices_.begin()) --next;
  for (uint64_t at = offset; at < end;) {
    while (next != matrices_.end() &&
           next->first + next->second.row_bytes() * static_cast<uint64_t>(next->second.rows) <=
               at) {
      ++next;
    }
    if (next == matrices_.end() || next->first > at) {
      const uint64_t until = next == matrices_.end() ? end : std::min(end, next->first);
      const auto part = out.subspan(at - offset, until - at);
      // Whoever reads several tensors at once passes over what is between their rows.
      const size_t there = at < packed_size() ? std::min(until, packed_size()) - at : 0;
      opened_.read_at(part.first(there), at);
      std::fill(part.begin() + static_cast<std::ptrdiff_t>(there), part.end(), std::byte{});
      at = until;
      continue;
    }
    const auto& [start, matrix] = *next;
    const uint64_t rows_end = start + matrix.row_bytes() * static_cast<uint64_t>(matrix.rows);
    const uint64_t until = std::min(end, rows_end);
    read_rows(matrix, at - start, out.subspan(at - offset, until - at),
              [&, first = matrix.file_offset](std::span<std::byte> bytes, uint64_t from) {
                opened_.read_at(bytes, first + from);
              });
    at = until;
  }
}

std::vector<float> PanelFile::read_scales(const PackedMatrix& matrix) const {
  const kernels::Quantization& q = matrix.quantization;
  const int64_t blocks = kernels::quantized_blocks(q, matrix.columns);
  std::vector<float> scales(static_cast<size_t>(matrix.rows * blocks));
  constexpr uint64_t kStepBytes = uint64_t{1} << 20;
  const auto step = static_cast<int64_t>(std::max<uint64_t>(1, kStepBytes / matrix.panel_bytes()));
  std::vector<std::byte> packed;
  for (int64_t row = 0; row < matrix.rows; row += step * kPanelRows) {
    throw_if_cancelled();
    const int64_t rows = std::min(step * kPanelRows, matrix.rows - row);
    const auto panel = static_cast<uint64_t>(row / kPanelRows);
    packed.resize(kernels::quantized_matrix_bytes(q, rows, matrix.columns).value());
    opened_.read_at(packed, matrix.file_offset + panel * matrix.panel_bytes());
    kernels::unpack_quantized(nullptr, scales.data() + row * blocks, packed.data(), rows,
                              matrix.columns, q);
  }
  return scales;
}

const PackedMatrix* PanelFile::find(uint64_t offset) const {
  const auto it = matrices_.find(offset);
  return it == matrices_.end() ? nullptr : &it->second;
}

}  // namespace llmctl::reshard
