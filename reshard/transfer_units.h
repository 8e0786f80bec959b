// Cuts a plan into units of work, each of which reads its source once and writes its target once.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <vector>

#include "reshard/plan.h"

namespace llmctl::reshard {

/// A copy and the target tensor it fills.
struct UnitOp {
  size_t tensor = 0;  ///< index into Plan::tensors
  CopyOp op;
};

/// Elements [lo, hi) of a stored tensor.
struct SourceSpan {
  int source = 0;
  int64_t lo = 0, hi = 0;
};

/// One read: bytes [lo, hi) of a file, and which tensors' elements are wanted of it.
struct SourceRead {
  int file = 0;
  uint64_t lo = 0, hi = 0;
  std::vector<SourceSpan> spans;
};

/// Elements [lo, hi) of a target tensor.
struct TargetSpan {
  size_t tensor = 0;
  int64_t lo = 0, hi = 0;
};

/// One write: elements [lo, hi) of a target tensor and the copies that fill them. What no copy
/// fills is padding.
struct TargetBlock {
  size_t tensor = 0;
  int64_t lo = 0, hi = 0;
  std::vector<CopyOp> ops;
};

/// A unit laid out: everything is read, then the blocks are filled and written one by one.
struct Transfer {
  std::vector<SourceRead> reads;
  std::vector<TargetBlock> blocks;
};

struct Unit {
  enum class Kind {
    kStreamed,  ///< small: all of its source is held at once, one block of its target at a time
    kStaged,    ///< a transpose: all of its target is held, a slab of its source at a time
    kTensor,    ///< one target tensor with arithmetic between tensors, done whole
    kZeros,     ///< padding that lies between other units' blocks
  };
  Kind kind = Kind::kStreamed;
  /// Indices [lo, hi) along the first axis of every op of a cluster; all of them when hi < 0.
  struct Part {
    size_t cluster = 0;
    int64_t lo = 0, hi = -1;
  };
  std::vector<Part> parts;
  size_t tensor = 0;          ///< kTensor, kZeros
  int64_t lo = 0, hi = 0;     ///< kZeros: elements
  uint64_t staged_bytes = 0;  ///< kStaged, kTensor: of target held
  uint64_t source_bytes = 0;  ///< kStreamed
  uint64_t first_byte = 0;    ///< where its source begins, for the order of reading
};

struct UnitOptions {
  /// Source bytes of a streamed unit, at most and for few targets; where a tensor is spread over
  /// many targets units grow up to `most_slab_bytes`, so that each of them gets a large piece.
  uint64_t slab_bytes = uint64_t{4} << 20, most_slab_bytes = uint64_t{8} << 20;
  /// Most bytes of a kStaged unit.
  uint64_t staged_bytes = uint64_t{256} << 20;
  /// Whether a target tensor is memory to be filled in place: any partition suits it. Empty: none.
  std::function<bool(size_t tensor)> in_memory;
  /// Position modulo 4096 at which a byte of a target tensor falls on the disk. Empty: 0.
  std::function<uint64_t(size_t tensor, uint64_t offset_bytes)> phase;
};

/// The units of a plan, in the order of their source. Which units there are depends on the
/// options, what they write together does not. Immutable after construction.
class TransferUnits {
 public:
  TransferUnits(const Plan& plan, UnitOptions options);

  const std::vector<Unit>& units() const { return units_; }
  /// The copies of a unit.
  std::vector<UnitOp> ops(const Unit& unit) const;
  /// Requires: kStreamed.
  Transfer transfer(const Unit& unit) const { return lay_out(ops(unit)); }

  /// The stretches of targets that ops lie in, by tensor and place, those that touch merged.
  static std::vector<TargetSpan> target_spans(const std::vector<UnitOp>& ops);

  /// What the largest streamed unit takes: bytes of reads, each with the room that aligned
  /// transfers need, and bytes of a block.
  uint64_t most_read_bytes() const { return most_read_bytes_; }
  uint64_t most_block_bytes() const { return most_block_bytes_; }
  /// The largest staged unit and the sum of all.
  uint64_t most_staged_bytes() const { return most_staged_bytes_; }

 private:
  using Ops = std::vector<UnitOp>;
  const formats::StoredTensor& stored(int index) const;
  int64_t source_width(const UnitOp& op) const;
  int64_t target_width(size_t tensor) const;
  bool in_memory(size_t tensor) const;
  uint64_t phase(size_t tensor, uint64_t offset_bytes) const;

  Transfer lay_out(const Ops& ops) const;
  void explode(const UnitOp& op, Ops& out) const;
  std::vector<Ops> clusters_of(Ops ops) const;
  void add_cluster(Ops ops);
  bool add_cut(const Ops& ops, Side side);
  bool add_cut_anywhere(const Ops& ops);
  bool add_runs(const Ops& ops);
  void add_streamed(const Transfer& transfer, Unit::Part part);
  void add_staged(Ops ops);
  void add_tensor(size_t tensor);
  void add_zeros();
  void unite_small();
  uint64_t first_byte(const Ops& ops) const;
  uint64_t slab_for(const Ops& ops) const;

  const Plan& plan_;
  UnitOptions options_;
  std::vector<Ops> clusters_;
  std::vector<Unit> units_;
  std::map<size_t, std::vector<TargetSpan>> covered_;  // of tensors with padding
  uint64_t most_read_bytes_ = 0, most_block_bytes_ = 0, most_staged_bytes_ = 0;
};

/// Bytes of buffer for reading `size_bytes` from anywhere in a file in whole 4096-byte blocks.
constexpr uint64_t read_room(uint64_t size_bytes) {
  return (size_bytes + 2 * 4096 - 1) / 4096 * 4096 + 4096;
}

}  // namespace llmctl::reshard
