#include "runtime/comm/mpi_library.h"

#include <dlfcn.h>

#include "formats/core/error.h"

namespace llmctl::runtime {
namespace {

void* symbol(void* library, const char* name) {
  void* found = ::dlsym(library, name);
  if (found == nullptr) {
    throw Error(ErrorCode::kEnvironment, std::string("has no ") + name, "the MPI library",
                "install Open MPI 4 or later (libopenmpi3)");
  }
  return found;
}

template <typename Function>
void resolve(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(symbol(library, name));
}

}  // namespace

MpiLibrary MpiLibrary::open() {
  void* library = nullptr;
  std::string why;
  for (const char* name : {"libmpi.so.40", "libmpi.so"}) {
    // Open MPI's own plug-ins look for its symbols among the global ones.
    library = ::dlopen(name, RTLD_NOW | RTLD_GLOBAL);
    if (library != nullptr) break;
    if (const char* text = ::dlerror(); why.empty() && text != nullptr) why = text;
  }
  if (library == nullptr) {
    throw Error(ErrorCode::kEnvironment,
                "the processes cannot share a job, because Open MPI's library cannot be loaded (" +
                    why + ")",
                "libmpi.so.40", "install it (libopenmpi3), or start one llmctl");
  }
  // It stays: its threads and exit handlers cannot be called off.
  MpiLibrary mpi;
  resolve(library, "MPI_Init_thread", mpi.init_thread);
  resolve(library, "MPI_Finalize", mpi.finalize);
  resolve(library, "MPI_Abort", mpi.abort);
  resolve(library, "MPI_Comm_rank", mpi.comm_rank);
  resolve(library, "MPI_Comm_size", mpi.comm_size);
  resolve(library, "MPI_Comm_dup", mpi.comm_dup);
  resolve(library, "MPI_Comm_set_errhandler", mpi.comm_set_errhandler);
  resolve(library, "MPI_Error_string", mpi.error_string);
  resolve(library, "MPI_Isend", mpi.isend);
  resolve(library, "MPI_Irecv", mpi.irecv);
  resolve(library, "MPI_Recv", mpi.recv);
  resolve(library, "MPI_Iprobe", mpi.iprobe);
  resolve(library, "MPI_Test", mpi.test);
  resolve(library, "MPI_Testall", mpi.testall);
  resolve(library, "MPI_Get_count", mpi.get_count);
  mpi.world = static_cast<MPI_Comm>(symbol(library, "ompi_mpi_comm_world"));
  mpi.byte = static_cast<MPI_Datatype>(symbol(library, "ompi_mpi_byte"));
  mpi.errors_return = static_cast<MPI_Errhandler>(symbol(library, "ompi_mpi_errors_return"));
  return mpi;
}

void MpiLibrary::check(int code, const char* call) const {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  error_string(code, text, &length);
  throw Error(ErrorCode::kEnvironment, text, call, "another process or its host may have ended");
}

}  // namespace llmctl::runtime
