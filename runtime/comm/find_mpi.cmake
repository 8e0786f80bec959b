# Included by the root: decides from LLMCTL_WITH_MPI and what is installed whether processes that
# mpirun starts can share a job (LLMCTL_HAVE_MPI, LLMCTL_MPI_INCLUDES).
set(LLMCTL_HAVE_MPI FALSE)
if(LLMCTL_WITH_MPI STREQUAL "OFF")
  message(STATUS "MPI: off (LLMCTL_WITH_MPI=OFF)")
  return()
endif()
# Another MPI's header has other types: the one that belongs to Open MPI's library is needed.
pkg_check_modules(OPEN_MPI QUIET ompi-c)
if(NOT OPEN_MPI_FOUND)
  if(LLMCTL_WITH_MPI STREQUAL "ON")
    message(FATAL_ERROR "LLMCTL_WITH_MPI=ON, but pkg-config does not know ompi-c; install "
                        "libopenmpi-dev or set PKG_CONFIG_PATH")
  endif()
  message(STATUS "MPI: left out, pkg-config does not know ompi-c (libopenmpi-dev)")
  return()
endif()
set(LLMCTL_HAVE_MPI TRUE)
set(LLMCTL_MPI_INCLUDES ${OPEN_MPI_INCLUDE_DIRS})
message(STATUS "MPI: Open MPI ${OPEN_MPI_VERSION}")
