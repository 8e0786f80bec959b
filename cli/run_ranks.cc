#include "cli/run_ranks.h"

#include <algorithm>
#include <string>

#include "cli/flags.h"
#include "formats/core/error.h"
#include "runtime/comm/launcher.h"
#include "runtime/comm/process_ranks.h"

namespace llmctl::cli {

std::unique_ptr<runtime::RankGroup> make_ranks(runtime::ProcessLink* link,
                                               const RunOptions& options,
                                               runtime::EngineOptions& engine) {
  if (link == nullptr) return nullptr;
  const int64_t ranks = options.tp * options.pp;
  if (link->size() != ranks) {
    const auto launcher = runtime::find_launcher();
    const std::string name = launcher ? launcher->name : "mpirun";
    const std::string grid =
        "--tp " + std::to_string(options.tp) + " --pp " + std::to_string(options.pp);
    const std::string model = " llmctl run " + printable(options.model, 1000) + " " + grid + " ...";
    throw_usage(grid,
                "needs " + std::to_string(ranks) + (ranks == 1 ? " process, " : " processes, ") +
                    name + " has started " + std::to_string(link->size()),
                ranks == 1 ? "start it alone:" + model
                           : "start it as: " + name + " -n " + std::to_string(ranks) + model);
  }
  engine.threads =
      static_cast<int>(options.threads > 0 ? std::max<int64_t>(1, options.threads / ranks)
                                           : cores_for_this_process());
  return runtime::make_process_ranks(*link, engine.tp, engine.pp);
}

}  // namespace llmctl::cli
