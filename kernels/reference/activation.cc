#include "kernels/activation.h"

#include <cmath>

namespace llmctl::kernels::reference {
namespace {

double apply(double x, ActivationOp op) {
  constexpr double kSqrtHalf = 0.70710678118654752440;
  constexpr double kSqrtTwoOverPi = 0.79788456080286535588;
  switch (op) {
    case ActivationOp::kRelu:
      return std::isnan(x) ? x : (x > 0 ? x : 0.0);
    case ActivationOp::kGelu:
      return 0.5 * x * std::erfc(-x * kSqrtHalf);
    case ActivationOp::kGeluTanh:
      // 0.5 (1 + tanh u) = 1 / (1 + exp(-2u)), which keeps its digits for negative u.
      return x / (1.0 + std::exp(-2.0 * kSqrtTwoOverPi * (x + 0.044715 * x * x * x)));
    case ActivationOp::kSilu:
      return x / (1.0 + std::exp(-x));
    case ActivationOp::kQuickGelu:
      return x / (1.0 + std::exp(-1.702 * x));
  }
  return x;
}

}  // namespace

void activation(float* x, int64_t count, ActivationOp op) {
  for (int64_t i = 0; i < count; ++i) x[i] = static_cast<float>(apply(x[i], op));
}

void gated_activation(float* y, const float* gate_up, int64_t num_tokens, int64_t n,
                      ActivationOp op) {
  for (int64_t t = 0; t < num_tokens; ++t) {
    for (int64_t i = 0; i < n; ++i) {
      const double gate = apply(gate_up[t * 2 * n + i], op);
      y[t * n + i] = static_cast<float>(gate * gate_up[t * 2 * n + n + i]);
    }
  }
}

}  // namespace llmctl::kernels::reference
