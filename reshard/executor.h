// Carries out a plan: streams the stored bytes through bounded memory into a sink.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "kernels/convert.h"
#include "reshard/box.h"
#include "reshard/plan.h"

namespace llmctl::reshard {

/// Where target bytes go. Calls come from several threads, each byte of a tensor once.
class TensorSink {
 public:
  virtual ~TensorSink() = default;
  /// The tensor's memory, for sinks that are memory; it is then filled in place.
  virtual std::byte* memory(size_t tensor) {
    (void)tensor;
    return nullptr;
  }
  /// The address modulo 4096 that the memory holding this byte should have when it is written, so
  /// that it can go to the disk from there. Nothing: any will do.
  virtual std::optional<size_t> phase(size_t tensor, uint64_t offset_bytes) {
    (void)tensor;
    (void)offset_bytes;
    return std::nullopt;
  }
  virtual void write(size_t tensor, uint64_t offset_bytes, std::span<const std::byte> bytes) = 0;
  /// The same for bytes that lie just so in a file: whole blocks of them need not be written where
  /// the file system lets files share blocks.
  struct Origin {
    int descriptor = -1;
    uint64_t offset_bytes = 0;
  };
  virtual void write_unchanged(size_t tensor, uint64_t offset_bytes,
                               std::span<const std::byte> bytes, const Origin& origin) {
    (void)origin;
    write(tensor, offset_bytes, bytes);
  }
};

/// Sees the bytes that pass. Calls come from several threads.
class TransferObserver {
 public:
  virtual ~TransferObserver() = default;
  /// A range of a stored tensor, from element `lo` of it, as read; some ranges come twice.
  virtual void on_read(int source, int64_t lo, std::span<const std::byte> bytes) = 0;
  /// A range of a target tensor, from element `lo` of it, as it goes to the sink; each once.
  virtual void on_write(size_t tensor, int64_t lo, std::span<const std::byte> bytes) = 0;
  /// Before a unit of work, which one thread does from here to end_unit. True: it is passed over,
  /// because its target is complete; end_unit is then not called.
  virtual bool skip_unit(size_t unit) {
    (void)unit;
    return false;
  }
  virtual void end_unit(size_t unit) { (void)unit; }
};

/// What decides, with the plan and the sink, into which units the work is cut.
struct UnitSizes {
  uint64_t slab_bytes = 0, most_slab_bytes = 0, staged_bytes = 0;
};
/// What `execute` takes for these limits, by the memory that the process has now.
UnitSizes choose_unit_sizes(int jobs, uint64_t max_memory);

struct ExecuteOptions {
  int jobs = 1;
  /// Most resident bytes of the process. An upper bound: buffers take what the plan needs. Where
  /// that is less than the process has already plus some 8 MiB, as little as possible is taken.
  uint64_t max_memory = uint64_t{512} << 20;
  kernels::Overflow overflow = kernels::Overflow::kInf;
  bool overflow_is_error = false;
  /// Reads past the page cache where the file system allows that. A large job then runs in memory
  /// that it has already touched, instead of taking ever more of it, and does not evict what others
  /// use.
  bool leave_page_cache = false;
  /// Called with the bytes written since the last call, from any worker. May be empty.
  std::function<void(uint64_t bytes)> progress;
  /// Reads every whole replica (reshard/whole_replicas.h) of a stored tensor beside it and refuses
  /// (kInvalidInput, naming both) what differs. Other overlaps are for check_replicas.
  bool compare_replicas = false;
  /// Absent: chosen. With the same sizes, plan and sink a unit's number means the same work.
  std::optional<UnitSizes> unit_sizes;
  TransferObserver* observer = nullptr;  ///< may be null; outlives the call
  /// Does part `part` of `num_parts` only: with the same plan, unit sizes and kind of sink the
  /// parts together do each unit and compare each replica once, and no two parts read the same
  /// element of the source.
  int part = 0, num_parts = 1;
};

struct TensorOverflow {
  size_t tensor = 0;  ///< index into Plan::tensors
  uint64_t count = 0;
};

/// The same bytes for any `jobs` and `max_memory`. Returns the tensors in which values left the
/// range of the target dtype. Throws the first error of any worker; kInvalidInput for an overflow
/// when `overflow_is_error`; kInterrupted when cancelled.
std::vector<TensorOverflow> execute(const Plan& plan, TensorSink& sink,
                                    const ExecuteOptions& options);

/// Reads rows [first, first + count) along the slowest axis of a canonical tensor, as F32 in
/// canonical order. For comparing and digesting; `out` has count * (elements per row) floats.
void read_canonical_rows(const Model& model, const std::string& key, int64_t first, int64_t count,
                         std::span<float> out);

/// The bytes of one box of a stored piece, in canonical order and as stored.
std::vector<std::byte> read_box(const Model& model, const SourcePiece& source, const IndexBox& box);

}  // namespace llmctl::reshard
