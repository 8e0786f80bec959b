// Whether this process is one of several that mpirun or srun has started.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "runtime/comm/process_link.h"

namespace llmctl::runtime {

/// What the environment says. A plain value.
struct Launcher {
  std::string name;  ///< "mpirun", "srun", for messages
  int rank = 0;
  int size = 1;                        ///< 0: only MPI can tell
  int local_rank = 0, local_size = 1;  ///< on this host, as far as that is said
};

/// Looks variables up as getenv does.
using Environment = std::function<const char*(const char* name)>;

/// Nothing when no launcher has started this process: Open MPI's mpirun, another MPI's, or a step
/// of Slurm. A job script of Slurm is no step.
std::optional<Launcher> find_launcher(const Environment& environment);
std::optional<Launcher> find_launcher();  ///< in this process's environment

/// The group of all processes that the launcher has started; null when that is this one only.
/// Collective. Loads the MPI library, which nothing else in llmctl needs. Throws kEnvironment when
/// there is none, or when it does not see the launcher's other processes: each would do the whole
/// job then, over the same output.
std::unique_ptr<ProcessLink> join_processes(const Launcher& launcher);

}  // namespace llmctl::runtime
