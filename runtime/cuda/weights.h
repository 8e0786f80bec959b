// Weights on their way to a GPU: from panels to row-major, axes padded where kernels want it.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "formats/core/dtype.h"
#include "formats/core/thread_pool.h"
#include "kernels/panels.h"
#include "runtime/cuda/memory.h"

namespace llmctl::runtime::cuda {

/// An axis of `count` blocks of `size` elements, each followed by zeros up to `padded`.
struct PaddedAxis {
  int64_t count = 1, size = 0, padded = 0;

  int64_t stored() const { return count * size; }
  int64_t length() const { return count * padded; }
};
/// One block without padding.
inline PaddedAxis whole_axis(int64_t size) { return {1, size, size}; }

/// A matrix (rows, columns) row-major on the device, and its bias in F32 or null. Not owned.
struct DeviceMatrix {
  const void* data = nullptr;
  int64_t rows = 0, columns = 0;
  const float* bias = nullptr;

  bool empty() const { return data == nullptr; }
};

/// Owns what it uploads. Belongs to the current device; not thread-safe.
class WeightStore {
 public:
  /// Matrices are of `dtype`, F16 or BF16.
  WeightStore(DType dtype, const Stream& stream, ThreadPool& pool);

  /// Requires: panels of the store's dtype with rows.stored() and columns.stored().
  DeviceMatrix add_matrix(const kernels::PanelMatrix& panels, const PaddedAxis& rows,
                          const PaddedAxis& columns);
  /// In F32; null for null.
  const float* add_vector(const float* values, const PaddedAxis& axis);
  /// Rounded to the store's dtype if that changes no value; null if it does, or for null.
  const void* add_exact_16bit(const float* values, int64_t size);
  const int32_t* add_integers(const std::vector<int32_t>& values);

  /// Waits for the copies and frees what they went through.
  void finish();
  uint64_t bytes() const { return bytes_; }

 private:
  struct Slot {
    PinnedMemory memory;
    Event copied;
  };
  DeviceMemory& allocate(size_t bytes);
  /// A staging buffer whose last copy is done.
  Slot& next_slot();

  DType dtype_;
  const Stream& stream_;
  ThreadPool& pool_;
  std::array<Slot, 2> slots_;
  size_t turn_ = 0;
  uint64_t bytes_ = 0;
  std::vector<DeviceMemory> memory_;
};

}  // namespace llmctl::runtime::cuda
