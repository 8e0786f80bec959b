// Which process does which units of a plan.
#pragma once

#include <cstdint>
#include <vector>

#include "reshard/transfer_units.h"
#include "reshard/whole_replicas.h"

namespace llmctl::reshard {

/// Divides the units of a plan into parts of about as many bytes to move. A part is a run of the
/// source's order, so that it reads few source files and writes long stretches of few target
/// files; units that read the same bytes are never parted, so that each byte is read once. The same
/// input gives the same parts. Immutable after construction.
class UnitParts {
 public:
  /// `slab_bytes`: of one read of a transpose. `replicas`, when not null, are read beside their
  /// first, which counts.
  UnitParts(const Plan& plan, const TransferUnits& units, uint64_t slab_bytes, int num_parts,
            const WholeReplicas* replicas);

  int part_of(size_t unit) const { return parts_[unit]; }
  /// What the units of all parts read of stored tensors that have replicas.
  const std::vector<SourceSpan>& read_with_replicas() const { return read_with_replicas_; }

 private:
  std::vector<int> parts_;
  std::vector<SourceSpan> read_with_replicas_;
};

}  // namespace llmctl::reshard
