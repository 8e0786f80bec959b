// What follows a product in registers: bias, activation, residual, the one rounding.
#pragma once

#include "kernels/cuda/device.cuh"

namespace llmctl::kernels::cuda {

struct Epilogue {
  void* y;
  const void* bias;
  const float* residual;
  DType y_dtype, bias_dtype;
  bool activated;
  ActivationOp activation;
};

/// Stores act(value + bias[row]) + residual[index] at y[index]; `index` is token * n + row.
__device__ __forceinline__ void finish(const Epilogue& e, float value, int64_t row, int64_t index) {
  if (e.bias != nullptr) value += load_element(e.bias, e.bias_dtype, row);
  if (e.activated) value = activate(value, e.activation);
  if (e.residual != nullptr) value += e.residual[index];
  store_element(e.y, e.y_dtype, index, value);
}

}  // namespace llmctl::kernels::cuda
