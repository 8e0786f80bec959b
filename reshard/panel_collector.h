// Brings together the rows of a panel that arrive apart.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <span>
#include <vector>

#include "reshard/panel_file.h"

namespace llmctl::reshard {

/// Takes the row-major bytes of a matrix in any order and pieces, each byte once. Thread-safe.
class PanelCollector {
 public:
  explicit PanelCollector(const PackedMatrix& shape) : shape_(shape) {}
  const PackedMatrix& shape() const { return shape_; }

  /// Calls put(panel, rows of it and those after it, whether they came in one piece) for panels
  /// that are whole, up to some MiB at a time.
  void take(
      uint64_t offset_bytes, std::span<const std::byte> bytes,
      const std::function<void(int64_t panel, std::span<const std::byte> rows, bool at_once)>& put);
  /// Calls body(panel, its rows, zeros where some are still to come) for panels that are not whole.
  /// None becomes whole meanwhile.
  void for_each_fragment(
      const std::function<void(int64_t panel, std::span<const std::byte> rows)>& body);

 private:
  struct Fragment {
    uint64_t filled = 0;
    std::vector<std::byte> rows;
  };
  PackedMatrix shape_;
  std::mutex mutex_;                       // guards fragments_
  std::map<int64_t, Fragment> fragments_;  // by panel
};

}  // namespace llmctl::reshard
