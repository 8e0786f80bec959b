#include "runtime/comm/launcher.h"

#include <doctest/doctest.h>

#include <map>
#include <string>

using namespace llmctl::runtime;

namespace {

std::optional<Launcher> launcher_in(const std::map<std::string, std::string>& variables) {
  return find_launcher([&](const char* name) {
    const auto it = variables.find(name);
    return it == variables.end() ? nullptr : it->second.c_str();
  });
}

}  // namespace

TEST_CASE("launcher: mpirun and srun are known by what they set") {
  CHECK_FALSE(launcher_in({}));
  const auto open_mpi = launcher_in({{"OMPI_COMM_WORLD_RANK", "3"},
                                     {"OMPI_COMM_WORLD_SIZE", "8"},
                                     {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                                     {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                                     {"PMIX_RANK", "3"}});
  REQUIRE(open_mpi);
  CHECK(open_mpi->name == "mpirun");
  CHECK(open_mpi->rank == 3);
  CHECK(open_mpi->size == 8);
  CHECK(open_mpi->local_rank == 1);
  CHECK(open_mpi->local_size == 2);
  const auto slurm = launcher_in({{"SLURM_PROCID", "5"},
                                  {"SLURM_STEP_NUM_TASKS", "6"},
                                  {"SLURM_LOCALID", "1"},
                                  {"SLURM_STEP_TASKS_PER_NODE", "4(x2)"}});
  REQUIRE(slurm);
  CHECK(slurm->name == "srun");
  CHECK(slurm->rank == 5);
  CHECK(slurm->size == 6);
  CHECK(slurm->local_size == 4);
  CHECK(launcher_in({{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}})->size == 2);
}

TEST_CASE("launcher: a job script is no step and mpirun inside Slurm goes before Slurm") {
  CHECK_FALSE(launcher_in({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "16"}}));
  const auto both = launcher_in({{"SLURM_PROCID", "0"},
                                 {"SLURM_STEP_NUM_TASKS", "2"},
                                 {"OMPI_COMM_WORLD_RANK", "7"},
                                 {"OMPI_COMM_WORLD_SIZE", "16"}});
  REQUIRE(both);
  CHECK(both->size == 16);
  CHECK(both->rank == 7);
}

TEST_CASE("launcher: under PMIx alone only MPI knows how many there are") {
  const auto launcher = launcher_in({{"PMIX_RANK", "2"}});
  REQUIRE(launcher);
  CHECK(launcher->size == 0);
  CHECK(launcher->rank == 2);
}

TEST_CASE("launcher: words in the place of numbers are no launcher") {
  CHECK_FALSE(launcher_in({{"OMPI_COMM_WORLD_RANK", "x"}, {"OMPI_COMM_WORLD_SIZE", "2"}}));
  CHECK_FALSE(launcher_in({{"OMPI_COMM_WORLD_RANK", "-1"}, {"OMPI_COMM_WORLD_SIZE", "2"}}));
  CHECK_FALSE(launcher_in({{"OMPI_COMM_WORLD_RANK", ""}, {"OMPI_COMM_WORLD_SIZE", "2"}}));
}

TEST_CASE("launcher: a single process needs no MPI") {
  CHECK(join_processes({"mpirun", 0, 1, 0, 1}) == nullptr);
}
