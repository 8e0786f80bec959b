// Stands in for mpi.cc where Open MPI's headers were missing at build.
#include "formats/core/error.h"
#include "runtime/comm/launcher.h"

namespace llmctl::runtime {

std::unique_ptr<ProcessLink> join_processes(const Launcher& launcher) {
  if (launcher.size == 1) return nullptr;
  throw Error(ErrorCode::kEnvironment,
              "this llmctl was built without MPI, and its processes cannot share a job",
              launcher.name, "start one llmctl, or build it where libopenmpi-dev is installed");
}

}  // namespace llmctl::runtime
