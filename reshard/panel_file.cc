#include "reshard/panel_file.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/panels.h"

namespace llmctl::reshard {

using kernels::kPanelRows;

uint64_t PackedMatrix::row_bytes() const {
  return static_cast<uint64_t>(columns) * dtype_bytes(dtype);
}

uint64_t PackedMatrix::panel_bytes() const { return kernels::panel_bytes(dtype, columns); }

uint64_t PackedMatrix::num_bytes() const {
  return kernels::matrix_panel_bytes(dtype, rows, columns).value();
}

int64_t PackedMatrix::rows_of(int64_t panel) const {
  return std::min(kPanelRows, rows - panel * kPanelRows);
}

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
      kernels::unpack_panels(out.data() + (first - offset), packed.data(), matrix.dtype, rows,
                             matrix.columns);
      continue;
    }
    plain.resize(static_cast<uint64_t>(rows) * row_bytes);
    kernels::unpack_panels(plain.data(), packed.data(), matrix.dtype, rows, matrix.columns);
    const uint64_t lo = std::max(first, offset), hi = std::min(behind, end);
    std::memcpy(out.data() + (lo - offset), plain.data() + (lo - first), hi - lo);
  }
}

PanelFile::PanelFile(formats::CheckpointFile file, std::map<uint64_t, PackedMatrix> matrices)
    : file_(std::move(file)), opened_(file_), matrices_(std::move(matrices)) {}

uint64_t PanelFile::size_bytes() const {
  return file_.decoder ? file_.decoder->size_bytes() : file_.size_bytes;
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
      opened_.read_at(out.subspan(at - offset, until - at), at);
      at = until;
      continue;
    }
    const auto& [start, matrix] = *next;
    const uint64_t rows_end = start + matrix.row_bytes() * static_cast<uint64_t>(matrix.rows);
    const uint64_t until = std::min(end, rows_end);
    read_rows(matrix, at - start, out.subspan(at - offset, until - at),
              [&, first = start](std::span<std::byte> bytes, uint64_t from) {
                opened_.read_at(bytes, first + from);
              });
    at = until;
  }
}

const PackedMatrix* PanelFile::find(uint64_t offset) const {
  const auto it = matrices_.find(offset);
  return it == matrices_.end() ? nullptr : &it->second;
}

}  // namespace llmctl::reshard
