# Included by the root, because a language must be enabled above every folder that uses it: decides
# from LLMCTL_WITH_CUDA and what is installed whether the CUDA kernels are built (LLMCTL_HAVE_CUDA).
set(LLMCTL_HAVE_CUDA FALSE)
if(LLMCTL_WITH_CUDA STREQUAL "OFF")
  message(STATUS "CUDA kernels: off (LLMCTL_WITH_CUDA=OFF)")
  return()
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(LLMCTL_WITH_CUDA STREQUAL "ON")
    message(FATAL_ERROR "LLMCTL_WITH_CUDA=ON, but no CUDA compiler was found; put nvcc on the PATH "
                        "or set CMAKE_CUDA_COMPILER")
  endif()
  message(STATUS "CUDA kernels: left out, no nvcc found")
  return()
endif()

# One architecture keeps the build short: 90 is the H200, 80 compiles too.
set(CMAKE_CUDA_ARCHITECTURES 90 CACHE STRING "CUDA architectures, e.g. 90 or 80;90")
if(CMAKE_CXX_COMPILER_LAUNCHER AND NOT DEFINED CMAKE_CUDA_COMPILER_LAUNCHER)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER} CACHE STRING "")
endif()
enable_language(CUDA)
# CMake before 3.26 does not know how nvcc 12 and later spell this dialect.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()
set(LLMCTL_HAVE_CUDA TRUE)
message(STATUS "CUDA kernels: ${CMAKE_CUDA_COMPILER} ${CMAKE_CUDA_COMPILER_VERSION}, "
               "architectures ${CMAKE_CUDA_ARCHITECTURES}")
