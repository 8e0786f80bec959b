// Inside the kernels only: the row-wise operations, per instruction set, on one row or run each.
#pragma once

#include <cstdint>

namespace llmctl::kernels::cpu {

struct RowKernels {
  void (*layer_norm)(float* y, const float* x, const float* weight, const float* bias,
                     int64_t hidden_size, float eps);
  void (*rms_norm)(float* y, const float* x, const float* weight, int64_t hidden_size, float eps);
  /// y[i] = act(x[i]), times up[i] when `up` is not null. `op` is an ActivationOp. y may be x.
  void (*activation)(float* y, const float* x, const float* up, int64_t count, int op);
};

extern const RowKernels kGenericRows;
extern const RowKernels kAvx2Rows;
extern const RowKernels kAvx512Rows;

}  // namespace llmctl::kernels::cpu
