// The CUDA back end as the engine and the command line see it: no CUDA type, so that it stands also
// where CUDA was missing at build (no_cuda.cc).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "formats/core/dtype.h"
#include "formats/core/error.h"
#include "formats/core/thread_pool.h"
#include "reshard/load.h"
#include "reshard/model.h"
#include "runtime/memory_probe.h"
#include "runtime/parallel.h"
#include "runtime/rank_model.h"

namespace llmctl::runtime::cuda {

/// GPUs that this process sees. Throws kEnvironment naming what is missing: CUDA in this llmctl
/// (kUsage), a driver, a driver new enough, a device.
int count_devices();
/// What count_devices would throw; nothing when it would not.
std::optional<Error> find_problem();

/// How the ranks of this process share the devices.
struct Placement {
  int num_ranks = 1;    ///< of this process
  int num_devices = 1;  ///< that they use; rank i of them is on device i % num_devices
};

/// Throws kEnvironment when there are fewer devices than ranks and they may not share, and when
/// this build has no code for one of them.
Placement place_ranks(int num_ranks, bool may_share);

/// How a rank is to compute.
struct ModelOptions {
  std::optional<DType> dtype;     ///< of the matrices; nothing: as stored
  std::optional<DType> kv_dtype;  ///< nothing: that of the matrices
  int64_t max_tokens = 512;       ///< of a pass
  int64_t page_size = 16;
};

/// Throws kUsage for what the device cannot compute, and kEnvironment with the numbers when the
/// weights and activations of the ranks of this process do not fit into the memory that is free.
/// Reads no weights.
void check_model(const reshard::Model& model, const ModelConfig& config, int tp, int pp,
                 const std::vector<int>& local_ranks, const Placement& placement,
                 const ModelOptions& options);

/// Copies the weights to the device and frees them here. `local_rank`: of placement.num_ranks.
/// `pool` is used during the call only. Throws kUsage for weights of a dtype that the device does
/// not compute with, kEnvironment when device memory is short.
std::unique_ptr<RankModel> make_model(const ModelConfig& config, const RankPlace& place,
                                      reshard::RankWeights weights, ThreadPool& pool,
                                      const Placement& placement, int local_rank,
                                      const ModelOptions& options);

/// Name and memory of the first device. Throws what count_devices throws.
std::string device_name();

/// Reads the first device's memory; says what `placement.num_devices` alike read together.
std::unique_ptr<BandwidthProbe> make_probe(const Placement& placement);

}  // namespace llmctl::runtime::cuda
