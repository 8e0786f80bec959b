// What a pass tells the device about its tokens: ids, positions, angles, runs and block tables.
#pragma once

#include <array>
#include <cstdint>

#include "runtime/cuda/memory.h"
#include "runtime/rank_model.h"
#include "runtime/rope.h"

namespace llmctl::runtime::cuda {

/// A pass cut into runs of neighbouring tokens of one sequence. Runs of one token that stand in
/// front are `singles`: row i of the pass is then run i. Two passes' arrays take turns in pinned
/// memory, so that the host fills one while the device copies the other.
class PassArrays {
 public:
  explicit PassArrays(int64_t page_size) : page_size_(page_size) {}

  /// Copies the arrays of `step` to the device. `rope` may be null. The pointers below are valid
  /// until the next call.
  void fill(const Step& step, Rope* rope, const Stream& stream);

  int64_t num_runs = 0, num_singles = 0;
  int64_t max_run = 0;  ///< tokens of the longest run behind the singles
  /// Pages of the longest sequence, rounded up to a power of two: as long as it and the number of
  /// tokens stay, so do the pointers of passes of singles, unless `generation` has changed.
  int64_t table_stride = 0;
  int64_t generation = 0;  ///< counts the memory that the pointers have pointed to

  // On the device, an entry per token:
  const int32_t* ids = nullptr;
  const int32_t* positions = nullptr;
  const int32_t* runs = nullptr;  ///< the token's run
  const float* cos = nullptr;     ///< (tokens, pairs)
  const float* sin = nullptr;
  // per run:
  const int32_t* first_rows = nullptr;
  const int32_t* run_tokens = nullptr;
  const int32_t* first_positions = nullptr;
  const int32_t* seq_lens = nullptr;  ///< position of its last token + 1
  const int32_t* tables = nullptr;    ///< (runs, table_stride)

 private:
  struct Slot {
    PinnedMemory host;
    Event copied;
  };
  int64_t page_size_;
  std::array<Slot, 2> slots_;
  size_t turn_ = 0;
  DeviceMemory device_;
};

}  // namespace llmctl::runtime::cuda
