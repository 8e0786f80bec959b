#include "kernels/cuda/check.h"

#include <string>

#include "formats/core/error.h"

namespace llmctl::kernels::cuda {

void check_status(cudaError_t status, const char* expression, const char* file, int line) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // a refused launch must not be reported again by the next one
  throw Error(ErrorCode::kEnvironment,
              std::string(cudaGetErrorName(status)) + " (" + cudaGetErrorString(status) +
                  ") from " + expression + " at " + file + ":" + std::to_string(line),
              "CUDA");
}

}  // namespace llmctl::kernels::cuda
