#include "runtime/cuda/weights.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "formats/core/error.h"
#include "kernels/convert.h"
#include "kernels/cuda/check.h"

namespace llmctl::runtime::cuda {
namespace {

/// Large enough for the bus, small enough to be pinned at once.
constexpr size_t kSlotBytes = size_t{16} << 20;

}  // namespace

WeightStore::WeightStore(DType dtype, const Stream& stream, ThreadPool& pool)
    : dtype_(dtype), stream_(stream), pool_(pool) {}

DeviceMemory& WeightStore::allocate(size_t bytes) {
  bytes_ += bytes;
  return memory_.emplace_back(bytes);
}

WeightStore::Slot& WeightStore::next_slot() {
  Slot& slot = slots_[turn_++ % slots_.size()];
  if (slot.memory.bytes() == 0) slot.memory = PinnedMemory(kSlotBytes);
  slot.copied.synchronize();
  return slot;
}

DeviceMatrix WeightStore::add_matrix(const kernels::PanelMatrix& panels, const PaddedAxis& rows,
                                     const PaddedAxis& columns) {
  if (panels.dtype != dtype_ || panels.rows != rows.stored() ||
      panels.columns != columns.stored()) {
    throw Error(ErrorCode::kInternal, "a matrix of another dtype or shape than the device expects");
  }
  const size_t width = dtype_bytes(dtype_);
  const size_t row_bytes = static_cast<size_t>(columns.length()) * width;
  const size_t stored_bytes = static_cast<size_t>(columns.stored()) * width;
  const auto size = static_cast<size_t>(columns.size) * width;
  const auto padded = static_cast<size_t>(columns.padded) * width;
  char* const device = allocate(static_cast<size_t>(rows.length()) * row_bytes).as<char>();
  if (rows.size != rows.padded) {
    LLMCTL_CUDA_CHECK(
        cudaMemsetAsync(device, 0, static_cast<size_t>(rows.length()) * row_bytes, stream_.get()));
  }
  // Pieces of whole panels, each through one slot.
  constexpr int64_t kPanel = kernels::kPanelRows;
  const int64_t panels_each = static_cast<int64_t>(kSlotBytes / row_bytes) / kPanel;
  if (panels_each == 0) throw Error(ErrorCode::kInternal, "rows of more than 1 MiB");
  const int64_t num_panels = (panels.rows + kPanel - 1) / kPanel;
  for (int64_t first = 0; first < num_panels; first += panels_each) {
    const int64_t count = std::min(panels_each, num_panels - first);
    const int64_t first_row = first * kPanel;
    const int64_t num_rows = std::min(panels.rows - first_row, count * kPanel);
    Slot& slot = next_slot();
    char* const host = slot.memory.as<char>();
    pool_.parallel_for(count, [&](int64_t i) {
      const int64_t begin = i * kPanel, here = std::min(kPanel, num_rows - begin);
      char* const to = host + static_cast<size_t>(begin) * row_bytes;
      const char* const from =
          static_cast<const char*>(panels.data) +
          static_cast<size_t>(first + i) * kernels::panel_bytes(dtype_, panels.columns);
      if (stored_bytes == row_bytes) {
        return kernels::unpack_panels(to, from, dtype_, here, panels.columns);
      }
      std::vector<char> scratch(static_cast<size_t>(here) * stored_bytes);
      kernels::unpack_panels(scratch.data(), from, dtype_, here, panels.columns);
      std::memset(to, 0, static_cast<size_t>(here) * row_bytes);
      for (size_t r = 0; r < static_cast<size_t>(here); ++r) {
        for (size_t block = 0; block < static_cast<size_t>(columns.count); ++block) {
          std::memcpy(to + r * row_bytes + block * padded,
                      scratch.data() + r * stored_bytes + block * size, size);
        }
      }
    });
    // Rows of one block stay neighbours on the device.
    for (int64_t row = first_row; row < first_row + num_rows;) {
      const int64_t block = row / rows.size, in_block = row % rows.size;
      const int64_t run = std::min(rows.size - in_block, first_row + num_rows - row);
      copy_to_device(device + static_cast<size_t>(block * rows.padded + in_block) * row_bytes,
                     host + static_cast<size_t>(row - first_row) * row_bytes,
                     static_cast<size_t>(run) * row_bytes, stream_);
      row += run;
    }
    slot.copied.record(stream_);
  }
  return {device, rows.length(), columns.length(), nullptr};
}

const float* WeightStore::add_vector(const float* values, const PaddedAxis& axis) {
  if (values == nullptr) return nullptr;
  std::vector<float> all(static_cast<size_t>(axis.length()));
  for (int64_t block = 0; block < axis.count; ++block) {
    std::copy_n(values + block * axis.size, axis.size, all.begin() + block * axis.padded);
  }
  auto* const device = allocate(all.size() * sizeof(float)).as<float>();
  copy_to_device(device, all.data(), all.size() * sizeof(float), stream_);
  return device;
}

const void* WeightStore::add_exact_16bit(const float* values, int64_t size) {
  if (values == nullptr) return nullptr;
  const auto count = static_cast<size_t>(size);
  std::vector<uint16_t> narrow(count);
  std::vector<float> wide(count);
  kernels::convert(narrow.data(), dtype_, values, DType::F32, size, kernels::Overflow::kInf);
  kernels::convert(wide.data(), DType::F32, narrow.data(), dtype_, size, kernels::Overflow::kInf);
  if (std::memcmp(wide.data(), values, count * sizeof(float)) != 0) return nullptr;
  void* const device = allocate(count * sizeof(uint16_t)).data();
  copy_to_device(device, narrow.data(), count * sizeof(uint16_t), stream_);
  return device;
}

const int32_t* WeightStore::add_integers(const std::vector<int32_t>& values) {
  auto* const device = allocate(values.size() * sizeof(int32_t)).as<int32_t>();
  copy_to_device(device, values.data(), values.size() * sizeof(int32_t), stream_);
  return device;
}

void WeightStore::finish() {
  stream_.synchronize();
  for (Slot& slot : slots_) slot.memory = PinnedMemory();
}

}  // namespace llmctl::runtime::cuda
