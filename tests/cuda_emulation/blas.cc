// In place of runtime/cuda/blas.cc: the emulated machine's library for large products.
#include "runtime/cuda/blas.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "tests/cuda_emulation/control.h"

namespace llmctl::runtime::cuda {

struct Blas::Impl {};
Blas::Blas() = default;
Blas::~Blas() = default;

std::unique_ptr<Blas> Blas::open() {
  if (!cuda_emulation::settings().has_blas) return nullptr;
  return std::unique_ptr<Blas>(new Blas);
}

bool Blas::multiply(void* y, DType y_dtype, const void* x, const void* w, DType dtype, int64_t m,
                    int64_t n, int64_t k, bool accumulates, const Stream& stream) {
  const auto load = [](const void* p, DType type, int64_t i) {
    if (type == DType::F32) return static_cast<const float*>(p)[i];
    const uint16_t bits = static_cast<const uint16_t*>(p)[i];
    return type == DType::F16 ? cuda_emulation::half_value(bits)
                              : cuda_emulation::bfloat16_value(bits);
  };
  const auto work = [=] {
    for (int64_t token = 0; token < m; ++token) {
      for (int64_t row = 0; row < n; ++row) {
        const int64_t at = token * n + row;
        double sum = accumulates ? load(y, y_dtype, at) : 0;
        for (int64_t i = 0; i < k; ++i) {
          sum += static_cast<double>(load(x, dtype, token * k + i)) * load(w, dtype, row * k + i);
        }
        const auto value = static_cast<float>(sum);
        if (y_dtype == DType::F32) {
          static_cast<float*>(y)[at] = value;
        } else {
          static_cast<uint16_t*>(y)[at] = y_dtype == DType::F16
                                              ? cuda_emulation::half_bits(value)
                                              : cuda_emulation::bfloat16_bits(value);
        }
      }
    }
  };
  cuda_emulation::enqueue_kernel(1, 1, 0, stream.get(), work);
  return true;
}

}  // namespace llmctl::runtime::cuda
