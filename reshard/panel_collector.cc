#include "reshard/panel_collector.h"

#include <algorithm>
#include <cstring>

#include "kernels/panels.h"

namespace llmctl::reshard {

using kernels::kPanelRows;

namespace {

/// Bytes that are packed at a time.
constexpr uint64_t kPackBytes = uint64_t{1} << 20;

}  // namespace

void PanelCollector::take(
    uint64_t offset_bytes, std::span<const std::byte> bytes,
    const std::function<void(int64_t, std::span<const std::byte>, bool)>& put) {
  const uint64_t panel_rows_bytes = shape_.row_bytes() * kPanelRows;
  if (panel_rows_bytes == 0) return;
  const auto step = static_cast<int64_t>(std::max<uint64_t>(1, kPackBytes / shape_.panel_bytes()));
  while (!bytes.empty()) {
    const auto panel = static_cast<int64_t>(offset_bytes / panel_rows_bytes);
    const uint64_t inside = offset_bytes % panel_rows_bytes;
    const uint64_t size = static_cast<uint64_t>(shape_.rows_of(panel)) * shape_.row_bytes();
    uint64_t done = std::min<uint64_t>(bytes.size(), size - inside);
    if (done == size) {
      // Whole panels, as many as there are.
      const int64_t count =
          std::clamp<int64_t>(static_cast<int64_t>(bytes.size() / panel_rows_bytes), 1, step);
      done = count > 1 ? static_cast<uint64_t>(count) * panel_rows_bytes : size;
      put(panel, bytes.first(done), true);
    } else {
      std::vector<std::byte> whole;
      {
        const std::lock_guard lock(mutex_);
        Fragment& fragment = fragments_[panel];
        fragment.rows.resize(size);
        std::memcpy(fragment.rows.data() + inside, bytes.data(), done);
        fragment.filled += done;
        if (fragment.filled == size) {
          whole = std::move(fragment.rows);
          fragments_.erase(panel);
        }
      }
      if (!whole.empty()) put(panel, whole, false);
    }
    offset_bytes += done;
    bytes = bytes.subspan(done);
  }
}

void PanelCollector::for_each_fragment(
    const std::function<void(int64_t, std::span<const std::byte>)>& body) {
  const std::lock_guard lock(mutex_);
  for (const auto& [panel, fragment] : fragments_) body(panel, fragment.rows);
}

}  // namespace llmctl::reshard
