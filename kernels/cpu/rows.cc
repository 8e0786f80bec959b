// Norms, activations and the residual sum: rows or runs handed to threads; and the generic
// version of each.
#include <functional>

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/simd_generic.h"
#include "kernels/cpu/threads.h"

// The body is written over the Simd of the header above.
#include "kernels/cpu/rows_body.h"

namespace llmctl::kernels {

const cpu::RowKernels cpu::kGenericRows = {layer_norm_row, rms_norm_row, activation_run};

namespace {

const cpu::RowKernels& row_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return cpu::kAvx512Rows;
  if (isa == Isa::kAvx2) return cpu::kAvx2Rows;
#endif
  static_cast<void>(isa);
  return cpu::kGenericRows;
}

/// Runs of an element-wise operation that one task takes: a multiple of every vector width, so
/// that where a run is cut does not change which elements share a vector.
constexpr int64_t kRun = cpu::kMinElementsPerTask;

}  // namespace

void cpu::layer_norm(Isa isa, float* y, const float* x, const float* weight, const float* bias,
                     int64_t num_tokens, int64_t hidden_size, float eps, ThreadPool& pool) {
  const auto kernel = row_kernels(isa).layer_norm;
  for_each_row(pool, num_tokens, hidden_size, [&](int64_t t) {
    kernel(y + t * hidden_size, x + t * hidden_size, weight, bias, hidden_size, eps);
  });
}

void cpu::rms_norm(Isa isa, float* y, const float* x, const float* weight, int64_t num_tokens,
                   int64_t hidden_size, float eps, ThreadPool& pool) {
  const auto kernel = row_kernels(isa).rms_norm;
  for_each_row(pool, num_tokens, hidden_size, [&](int64_t t) {
    kernel(y + t * hidden_size, x + t * hidden_size, weight, hidden_size, eps);
  });
}

void cpu::activation(Isa isa, float* x, int64_t count, ActivationOp op, ThreadPool& pool) {
  const auto kernel = row_kernels(isa).activation;
  const auto body = [&](int64_t i) {
    float* run = x + i * kRun;
    kernel(run, run, nullptr, std::min(kRun, count - i * kRun), static_cast<int>(op));
  };
  pool.parallel_for((count + kRun - 1) / kRun, std::ref(body),
                    count * static_cast<int64_t>(sizeof(float)));
}

void cpu::gated_activation(Isa isa, float* y, const float* gate_up, int64_t num_tokens, int64_t n,
                           ActivationOp op, ThreadPool& pool) {
  const auto kernel = row_kernels(isa).activation;
  for_each_row(pool, num_tokens, n, [&](int64_t t) {
    const float* gate = gate_up + t * 2 * n;
    kernel(y + t * n, gate, gate + n, n, static_cast<int>(op));
  });
}

void layer_norm(float* y, const float* x, const float* weight, const float* bias,
                int64_t num_tokens, int64_t hidden_size, float eps, ThreadPool& pool) {
  cpu::layer_norm(active_isa(), y, x, weight, bias, num_tokens, hidden_size, eps, pool);
}

void rms_norm(float* y, const float* x, const float* weight, int64_t num_tokens,
              int64_t hidden_size, float eps, ThreadPool& pool) {
  cpu::rms_norm(active_isa(), y, x, weight, num_tokens, hidden_size, eps, pool);
}

void activation(float* x, int64_t count, ActivationOp op, ThreadPool& pool) {
  cpu::activation(active_isa(), x, count, op, pool);
}

void gated_activation(float* y, const float* gate_up, int64_t num_tokens, int64_t n,
                      ActivationOp op, ThreadPool& pool) {
  cpu::gated_activation(active_isa(), y, gate_up, num_tokens, n, op, pool);
}

void add(float* x, const float* y, int64_t count, ThreadPool& pool) {
  const auto body = [&](int64_t i) {
    const int64_t end = std::min(count, (i + 1) * kRun);
    for (int64_t j = i * kRun; j < end; ++j) x[j] += y[j];
  };
  pool.parallel_for((count + kRun - 1) / kRun, std::ref(body),
                    count * static_cast<int64_t>(sizeof(float)));
}

}  // namespace llmctl::kernels
