// Choosing a template instance at run time.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.cuh"

namespace llmctl::kernels::cuda {

template <typename T>
struct Tag {
  using type = T;
};

/// Calls body(Tag<Half>{}) or body(Tag<Bfloat16>{}). kInternal for any other dtype.
template <typename Body>
void dispatch_16bit(DType dtype, const char* op, Body&& body) {
  if (dtype == DType::F16) return body(Tag<Half>{});
  require(dtype == DType::BF16, op, "16-bit kernels take F16 or BF16");
  body(Tag<Bfloat16>{});
}

inline bool is_device_float(DType dtype) {
  return dtype == DType::F32 || dtype == DType::F16 || dtype == DType::BF16;
}

}  // namespace llmctl::kernels::cuda
