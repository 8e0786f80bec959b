// RankModel: one rank's share of a model, whatever computes it.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/comm/communicator.h"
#include "runtime/paged_cache.h"
#include "runtime/parallel.h"

namespace llmctl::runtime {

/// The tokens of one forward pass. All spans have one entry per token; tokens of a sequence stand
/// side by side in order of position, and all before them are in the cache already.
struct Step {
  std::span<const int32_t> ids;                  ///< in [0, vocab_size)
  std::span<const int32_t> positions;            ///< in their own sequence, from 0
  std::span<const int64_t> lengths;              ///< of the sequence, for Rope::fill
  std::span<const int32_t* const> block_tables;  ///< pages of the sequence, this token's included
};

/// How a rank reaches the others during one pass.
struct RankComm {
  Communicator* world = nullptr;  ///< all ranks of the grid
  Communicator* tp = nullptr;     ///< the ranks of this pipeline stage
};

/// One rank's weights, cache and scratch. Not thread-safe.
class RankModel {
 public:
  /// Rows that one call of `logits` takes at most.
  static constexpr int64_t kMaxLogitRows = 32;

  virtual ~RankModel() = default;

  virtual const RankPlace& place() const = 0;
  virtual PagedCache& cache() = 0;

  /// Runs `step` through this rank's layers. Collective over all ranks, which must be given equal
  /// steps.
  void forward(const Step& step, const RankComm& comm) {
    compute(step, comm);
    hand_over(comm);
  }

  // forward in two halves, for a pipeline whose stages work on different steps at a time.

  /// Takes the activations that the stage before hands over and runs the layers.
  virtual void compute(const Step& step, const RankComm& comm) = 0;
  /// Hands what compute left to the stage after, which must be about to take it. Nothing to do on
  /// the last stage.
  virtual void hand_over(const RankComm& comm) = 0;

  /// Logits of the chosen tokens of the last pass: (rows.size(), vocab_size) in F32 on the host,
  /// valid until the next call. Collective over the last stage's ranks; not to be called on the
  /// others.
  virtual const float* logits(std::span<const int32_t> rows, const RankComm& comm) = 0;
};

}  // namespace llmctl::runtime
