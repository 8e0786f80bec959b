// Whether what was written is what was read: both sides of a transfer digested in passing.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/convert.h"
#include "reshard/canonical_digest.h"
#include "reshard/executor.h"
#include "reshard/plan.h"

namespace llmctl::reshard {

/// Digests the canonical tensors of a plan twice: over the source's own pieces as slabs are read,
/// and over the target's own pieces as blocks are written. The copy operations in between play no
/// part, so a wrong one shows as two digests that differ. Where the plan casts, the source's values
/// are cast the same way first. Not compared, because the written values are not those that were
/// read: tensors that a step scales, sums or multiplies out, and tensors that the target stores in
/// several dtypes; for them the target's digest is known all the same. Thread-safe.
class TransferCheck : public TransferObserver {
 public:
  /// What some reads have added to the digests of the source.
  struct ReadRecord {
    struct Range {
      int source;
      int64_t begin, end;
    };
    std::vector<Range> ranges;                      ///< elements that count as read
    std::vector<std::pair<size_t, uint64_t>> sums;  ///< by place of the tensor in Model::keys
  };

  /// Requires: `plan` outlives this.
  TransferCheck(const Plan& plan, kernels::Overflow overflow);
  ~TransferCheck() override;

  /// A range of a stored tensor, from element `lo`. What is read a second time counts once.
  void on_read(int source, int64_t lo, std::span<const std::byte> bytes) override;
  /// The same, and adds to `record` what it counted.
  void on_read(int source, int64_t lo, std::span<const std::byte> bytes, ReadRecord& record);
  /// Counts what another run has recorded.
  void restore(const ReadRecord& record);
  /// A range of a target tensor, from element `lo`, each once.
  void on_write(size_t tensor, int64_t lo, std::span<const std::byte> bytes) override;

  /// What this one has added up so far, and the same of another process that does a part of the
  /// same plan. Requires: no stored element is read by both.
  std::string sums() const;
  void add_sums(std::string_view sums);

  /// After the last write: the digests of what was written, one per canonical tensor (of copies on
  /// several ranks, the first), in canonical order. Throws kInternal, naming the tensor, when the
  /// two sides differ.
  std::vector<CanonicalDigest> finish() const;
  /// Keys of the canonical tensors whose two sides are compared.
  std::set<std::string> compared() const;

 private:
  struct Tensor;
  struct Source;
  struct Target;

  const Plan& plan_;
  kernels::Overflow overflow_;
  DigestWeights weights_;
  std::vector<std::unique_ptr<Tensor>> tensors_;  // canonical
  std::map<int, std::unique_ptr<Source>> sources_;
  std::vector<Target> targets_;  // as in the plan
};

}  // namespace llmctl::reshard
