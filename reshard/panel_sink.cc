#include "reshard/panel_sink.h"

#include <algorithm>
#include <cstring>

#include "formats/core/aligned_buffer.h"
#include "kernels/panels.h"
#include "reshard/panel_file.h"

namespace llmctl::reshard {
namespace {

using kernels::kPanelRows;

/// Bytes that are packed at a time.
constexpr uint64_t kPackBytes = uint64_t{1} << 20;

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
  PackedMatrix shape;
  struct Fragment {
    uint64_t filled = 0;
    std::vector<std::byte> rows;
  };
  std::mutex mutex;                       // guards fragments
  std::map<int64_t, Fragment> fragments;  // by panel
};

PanelSink::PanelSink(FileSink& files, const Plan& plan)
    : files_(files), matrices_(plan.tensors.size()) {
  for (size_t i = 0; i < matrices_.size(); ++i) {
    const formats::TargetTensor& target = plan.tensors[i].target;
    if (target.shape.size() != 2) continue;
    matrices_[i] = std::make_unique<Matrix>();
    matrices_[i]->shape = {target.dtype, target.shape[0], target.shape[1]};
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
  const uint64_t panel_rows_bytes = matrix.shape.row_bytes() * kPanelRows;
  if (panel_rows_bytes == 0) return;
  const auto step =
      static_cast<int64_t>(std::max<uint64_t>(1, kPackBytes / matrix.shape.panel_bytes()));
  while (!bytes.empty()) {
    const auto panel = static_cast<int64_t>(offset_bytes / panel_rows_bytes);
    const uint64_t inside = offset_bytes % panel_rows_bytes;
    const uint64_t size =
        static_cast<uint64_t>(matrix.shape.rows_of(panel)) * matrix.shape.row_bytes();
    uint64_t done = std::min<uint64_t>(bytes.size(), size - inside);
    if (done == size) {
      // Whole panels, as many as there are.
      const int64_t count =
          std::clamp<int64_t>(static_cast<int64_t>(bytes.size() / panel_rows_bytes), 1, step);
      done = count > 1 ? static_cast<uint64_t>(count) * panel_rows_bytes : size;
      put(tensor, matrix, panel, bytes.first(done), adopted);
    } else {
      std::vector<std::byte> whole;
      {
        const std::lock_guard lock(matrix.mutex);
        Matrix::Fragment& fragment = matrix.fragments[panel];
        fragment.rows.resize(size);
        std::memcpy(fragment.rows.data() + inside, bytes.data(), done);
        fragment.filled += done;
        if (fragment.filled == size) {
          whole = std::move(fragment.rows);
          matrix.fragments.erase(panel);
        }
      }
      // Even when an earlier run had all of it: that is known of its parts alone.
      if (!whole.empty()) put(tensor, matrix, panel, whole, false);
    }
    offset_bytes += done;
    bytes = bytes.subspan(done);
  }
}

void PanelSink::put(size_t tensor, const Matrix& matrix, int64_t panel,
                    std::span<const std::byte> rows, bool adopted) {
  const PackedMatrix& shape = matrix.shape;
  const auto num_rows = static_cast<int64_t>(rows.size() / shape.row_bytes());
  const int64_t panels = (num_rows + kPanelRows - 1) / kPanelRows;
  const uint64_t size = static_cast<uint64_t>(panels) * shape.panel_bytes();
  const uint64_t offset = static_cast<uint64_t>(panel) * shape.panel_bytes();
  std::byte* packed = scratch(size, files_.phase(tensor, offset).value_or(0));
  kernels::pack_panels(packed, rows.data(), shape.dtype, num_rows, shape.columns);
  if (adopted) {
    files_.adopt(tensor, offset, {packed, static_cast<size_t>(size)});
  } else {
    files_.write(tensor, offset, {packed, static_cast<size_t>(size)});
  }
}

void PanelSink::write_fragments() {
  for (size_t tensor = 0; tensor < matrices_.size(); ++tensor) {
    if (!matrices_[tensor]) continue;
    Matrix& matrix = *matrices_[tensor];
    const PackedMatrix& shape = matrix.shape;
    // Held while writing: a panel that becomes whole must be written after its parts.
    const std::lock_guard lock(matrix.mutex);
    for (const auto& [panel, fragment] : matrix.fragments) {
      std::byte* packed = scratch(shape.panel_bytes(), 0);
      kernels::pack_panels(packed, fragment.rows.data(), shape.dtype, shape.rows_of(panel),
                           shape.columns);
      files_.write_ahead(tensor, static_cast<uint64_t>(panel) * shape.panel_bytes(),
                         {packed, static_cast<size_t>(shape.panel_bytes())});
    }
  }
}

void PanelSink::read_back(const File& file, uint64_t start, size_t tensor, uint64_t offset_bytes,
                          std::span<std::byte> out) const {
  if (!matrices_[tensor]) return file.read_at(out, start + offset_bytes);
  read_rows(matrices_[tensor]->shape, offset_bytes, out,
            [&](std::span<std::byte> bytes, uint64_t from) { file.read_at(bytes, start + from); });
}

}  // namespace llmctl::reshard
