// How the device suite holds a kernel to the F64 reference of the CPU on the same stored inputs:
// outputs are poisoned with NaN before each run, every case runs twice and must give the same bits.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tests/gpu/harness.h"

namespace llmctl::gpu {

/// Largest norm(out - ref) / norm(ref), by the dtype the result was stored in.
inline double bound_of(DType dtype) {
  return dtype == DType::F32 ? 1e-5 : dtype == DType::F16 ? 6e-4 : 5e-3;
}
/// The special functions of the device are good to some 2 units in the last place of F32.
inline double bound_with_activation(DType dtype) {
  return dtype == DType::F32 ? 2e-5 : bound_of(dtype);
}

inline std::string dtype_word(DType d) { return std::string(dtype_name(d)); }

struct Checker {
  Report& report;
  const kernels::cuda::LaunchStream& stream;
  bool small;  ///< only shapes that finish under compute-sanitizer

  /// Runs `launch` twice into poisoned memory, or a copy of `initial`, and compares with `want`;
  /// then checks that nothing outside the result was written.
  void run(const std::string& name, DType dtype, const std::vector<float>& want, double bound,
           const std::function<void(void*)>& launch,
           const std::vector<float>* initial = nullptr) const;
};

// One for each file of kernels/cuda/, in a file of its own.
void check_linears(const Checker& c);
void check_quantized_linears(const Checker& c);
void check_norms(const Checker& c);
void check_rotary(const Checker& c);
void check_attention(const Checker& c);
void check_prefill_attention(const Checker& c);
void check_elementwise(const Checker& c);
void check_argmax(const Checker& c);

}  // namespace llmctl::gpu
