// Large products through cuBLASLt, which is looked for at run time: it is half a gigabyte, and its
// headers are not everywhere nvcc is.
#pragma once

#include <cstdint>
#include <memory>

#include "formats/core/dtype.h"
#include "runtime/cuda/memory.h"

namespace llmctl::runtime::cuda {

/// A handle, its workspace, and the algorithm chosen for each shape so far. Belongs to the device
/// that was current when it was opened; not thread-safe.
class Blas {
 public:
  /// Null when there is no library. $LLMCTL_CUBLASLT names one, else the loader finds
  /// libcublasLt.so.13. Throws kEnvironment when what was found cannot be used.
  static std::unique_ptr<Blas> open();
  ~Blas();
  Blas(const Blas&) = delete;
  Blas& operator=(const Blas&) = delete;

  /// Bytes of device memory that it holds.
  static constexpr size_t kWorkspaceBytes = size_t{32} << 20;

  /// y = x w^T, or y += x w^T when `accumulates`, summed in F32. False, with nothing done, when the
  /// library has no algorithm for the shape.
  bool multiply(void* y,        // (m, n)
                DType y_dtype,  // F32 or `dtype`
                const void* x,  // (m, k)
                const void* w,  // (n, k)
                DType dtype, int64_t m, int64_t n, int64_t k, bool accumulates,
                const Stream& stream);

 private:
  Blas();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace llmctl::runtime::cuda
