#include "runtime/comm/launcher.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <string_view>

namespace llmctl::runtime {
namespace {

std::optional<int> number(const Environment& environment, const char* name) {
  const char* text = name == nullptr ? nullptr : environment(name);
  if (text == nullptr) return std::nullopt;
  const std::string_view view(text);
  int value = 0;
  // Slurm writes "4(x2)" for four tasks on each of two nodes.
  const auto [end, error] = std::from_chars(view.data(), view.data() + view.size(), value);
  const bool whole = end == view.data() + view.size() || (end != view.data() && *end == '(');
  return error == std::errc() && whole && value >= 0 ? std::optional(value) : std::nullopt;
}

struct Variables {
  const char *launcher, *rank, *size, *local_rank, *local_size;
};

/// The first whose rank is set decides: mpirun inside a Slurm job sets its own beside Slurm's.
/// SLURM_PROCID alone stands in job scripts too, the step's size only in what srun has started.
constexpr std::array<Variables, 3> kVariables = {{
    {"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
     "OMPI_COMM_WORLD_LOCAL_SIZE"},
    {"mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"},
    {"srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"},
}};

}  // namespace

std::optional<Launcher> find_launcher(const Environment& environment) {
  for (const Variables& variables : kVariables) {
    const auto rank = number(environment, variables.rank);
    const auto size = number(environment, variables.size);
    if (!rank || !size) continue;
    const int local_rank = number(environment, variables.local_rank).value_or(*rank);
    const int local_size = number(environment, variables.local_size).value_or(1);
    return Launcher{variables.launcher, *rank, std::max(1, *size), local_rank,
                    std::max(1, local_size)};
  }
  if (const auto rank = number(environment, "PMIX_RANK"))
    return Launcher{"PMIx", *rank, 0, *rank, 1};
  return std::nullopt;
}

std::optional<Launcher> find_launcher() {
  return find_launcher([](const char* name) { return std::getenv(name); });
}

}  // namespace llmctl::runtime
