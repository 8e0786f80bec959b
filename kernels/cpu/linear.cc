// The matrix product, cut into ranges of output rows that threads claim; and its generic version.
#include "kernels/linear.h"

#include <algorithm>
#include <functional>
#include <string>

#include "formats/core/error.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/simd_generic.h"

// The body is written over the Simd of the header above.
#include "kernels/cpu/linear_body.h"

namespace llmctl::kernels {

void cpu::generic_linear_rows(const LinearRows& args) { linear_rows(args); }

void cpu::linear(Isa isa, float* y, const float* x, const void* w, DType w_dtype, const float* bias,
                 int64_t num_tokens, int64_t n, int64_t k, int64_t y_stride, ThreadPool& pool) {
  if (w_dtype != DType::F32 && w_dtype != DType::F16 && w_dtype != DType::BF16) {
    throw Error(ErrorCode::kInternal,
                "linear: no kernel for " + std::string(dtype_name(w_dtype)) + " weights");
  }
  if (num_tokens <= 0 || n <= 0) return;
  const auto run = [isa](const LinearRows& rows) {
#if defined(__x86_64__)
    if (isa == Isa::kAvx512) return avx512_linear_rows(rows);
    if (isa == Isa::kAvx2) return avx2_linear_rows(rows);
#endif
    static_cast<void>(isa);
    generic_linear_rows(rows);
  };
  // With few tokens 128 KiB of weights a claim, small enough that a thread which loses its core
  // does not hold up the others; with many, more rows, because each claim reads all activations.
  constexpr int64_t kPrefillRows = 64;
  const int64_t row_bytes = std::max<int64_t>(1, k * static_cast<int64_t>(dtype_bytes(w_dtype)));
  const int64_t fitting = (int64_t{128} << 10) / row_bytes;
  const int64_t fair = n / (2 * pool.num_threads());
  const int64_t wanted = num_tokens <= 8 ? fitting : std::min(fair, kPrefillRows);
  const int64_t chunk = std::clamp<int64_t>(wanted / 16 * 16, 16, 1024);
  const auto body = [&](int64_t i) {
    run({y, x, w, w_dtype, bias, num_tokens, n, k, y_stride, i * chunk,
         std::min(n, (i + 1) * chunk)});
  };
  // By reference: the pool's std::function then needs no memory.
  pool.parallel_for((n + chunk - 1) / chunk, std::ref(body));
}

void linear(float* y, const float* x, const void* w, DType w_dtype, const float* bias,
            int64_t num_tokens, int64_t n, int64_t k, int64_t y_stride, ThreadPool& pool) {
  cpu::linear(active_isa(), y, x, w, w_dtype, bias, num_tokens, n, k, y_stride, pool);
}

}  // namespace llmctl::kernels
