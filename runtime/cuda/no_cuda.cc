// Stands in for the CUDA back end where nvcc was missing at build.
#include "runtime/cuda/back_end.h"

namespace llmctl::runtime::cuda {

std::optional<Error> find_problem() {
  return Error(ErrorCode::kUsage, "this llmctl was built without CUDA", "--device cuda",
               "use --device cpu, or build it where nvcc is installed");
}

int count_devices() { throw *find_problem(); }

Placement place_ranks(int, bool) { throw *find_problem(); }

void check_model(const reshard::Model&, const ModelConfig&, int, int, const std::vector<int>&,
                 const Placement&, const ModelOptions&) {
  throw *find_problem();
}

std::unique_ptr<RankModel> make_model(const ModelConfig&, const RankPlace&, reshard::RankWeights,
                                      ThreadPool&, const Placement&, int, const ModelOptions&) {
  throw *find_problem();
}

std::string device_name() { throw *find_problem(); }

std::unique_ptr<BandwidthProbe> make_probe(const Placement&) { throw *find_problem(); }

}  // namespace llmctl::runtime::cuda
