// Open MPI's library, loaded when a launcher has started several processes and not before.
#pragma once

// The C interface only: the C++ one has left the standard.
#define OMPI_SKIP_MPICXX 1
#include <mpi.h>

#include <string>

namespace llmctl::runtime {

/// The functions and constants that llmctl uses, looked up by name, so that the binary starts on
/// machines without Open MPI. Types come from <mpi.h>; its macros for handles would need the
/// library's symbols at link time and must not be used. Immutable after open.
class MpiLibrary {
 public:
  /// Loads the library and looks everything up. Throws kEnvironment.
  static MpiLibrary open();

  /// Throws kEnvironment with MPI's text unless `code` is success.
  void check(int code, const char* call) const;

  decltype(&::MPI_Init_thread) init_thread = nullptr;
  decltype(&::MPI_Finalize) finalize = nullptr;
  decltype(&::MPI_Abort) abort = nullptr;
  decltype(&::MPI_Comm_rank) comm_rank = nullptr;
  decltype(&::MPI_Comm_size) comm_size = nullptr;
  decltype(&::MPI_Comm_dup) comm_dup = nullptr;
  decltype(&::MPI_Comm_set_errhandler) comm_set_errhandler = nullptr;
  decltype(&::MPI_Error_string) error_string = nullptr;
  decltype(&::MPI_Isend) isend = nullptr;
  decltype(&::MPI_Irecv) irecv = nullptr;
  decltype(&::MPI_Recv) recv = nullptr;
  decltype(&::MPI_Iprobe) iprobe = nullptr;
  decltype(&::MPI_Test) test = nullptr;
  decltype(&::MPI_Testall) testall = nullptr;
  decltype(&::MPI_Get_count) get_count = nullptr;

  MPI_Comm world = nullptr;
  MPI_Datatype byte = nullptr;
  MPI_Errhandler errors_return = nullptr;
};

}  // namespace llmctl::runtime
