// The few entry points of cuBLASLt the suite needs, found at run time: the library is half a
// gigabyte and its headers are not everywhere nvcc is.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "formats/core/dtype.h"

namespace llmctl::gpu {

/// One product D[m, n] = X[m, k] W[n, k]^T, F32 accumulation, planned once. Row-major, as stored by
/// the exported models.
class CublasLt {
 public:
  /// Null with one printed line when the library cannot be loaded. LLMCTL_CUBLASLT names a file.
  static std::unique_ptr<CublasLt> open();
  ~CublasLt();

  struct Plan;
  /// Throws kEnvironment when no algorithm fits.
  std::shared_ptr<Plan> plan(DType dtype, int64_t m, int64_t n, int64_t k);
  void run(const Plan& plan, void* d, const void* x, const void* w, cudaStream_t stream) const;

 private:
  CublasLt() = default;
  struct Api;
  std::unique_ptr<Api> api_;
  void* handle_ = nullptr;
  void* workspace_ = nullptr;
};

}  // namespace llmctl::gpu
