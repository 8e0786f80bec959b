// Norms and activations for one instruction set, written once over `Simd` (include simd_*.h
// first). Sums are in F64, lane by lane, then one fixed tree.
#pragma once

#include "kernels/cpu/math_body.h"
#include "kernels/cpu/rows.h"

namespace llmctl::kernels::cpu {
namespace {

constexpr int64_t kStep = Simd::kWidth;

/// y = (x - mean) * scale * weight + bias.
void scale_row(float* y, const float* x, const float* weight, const float* bias, int64_t count,
               float mean, float scale) {
  using F = Simd::F;
  const F means = Simd::set1(mean);
  const F scales = Simd::set1(scale);
  for (int64_t i = 0; i < count; i += kStep) {
    const int64_t n = count - i;
    const bool full = n >= kStep;
    F v = full ? Simd::load(x + i) : Simd::load_n(x + i, n);
    v = Simd::mul(Simd::sub(v, means), scales);
    if (weight != nullptr) {
      v = Simd::mul(v, full ? Simd::load(weight + i) : Simd::load_n(weight + i, n));
    }
    if (bias != nullptr) v = Simd::add(v, full ? Simd::load(bias + i) : Simd::load_n(bias + i, n));
    if (full) {
      Simd::store(y + i, v);
    } else {
      Simd::store_n(y + i, v, n);
    }
  }
}

void layer_norm_row(float* y, const float* x, const float* weight, const float* bias,
                    int64_t hidden_size, float eps) {
  Simd::D sum = Simd::zero_d();
  int64_t i = 0;
  for (; i + kStep <= hidden_size; i += kStep) {
    sum = Simd::add_d(sum, Simd::widen_d(Simd::load(x + i)));
  }
  if (i < hidden_size) {
    sum = Simd::add_d(sum, Simd::widen_d(Simd::load_n(x + i, hidden_size - i)));
  }
  const double mean = Simd::sum_d(sum) / static_cast<double>(hidden_size);
  Simd::D squares = Simd::zero_d();
  for (i = 0; i + kStep <= hidden_size; i += kStep) {
    squares = Simd::add_square_d(squares, Simd::sub_d(Simd::widen_d(Simd::load(x + i)), mean));
  }
  if (i < hidden_size) {
    const int64_t n = hidden_size - i;
    const Simd::D centred = Simd::sub_d(Simd::widen_d(Simd::load_n(x + i, n)), mean);
    squares = Simd::add_square_d(squares, Simd::keep_d(centred, n));
  }
  const double variance = Simd::sum_d(squares) / static_cast<double>(hidden_size);
  const double scale = 1.0 / __builtin_sqrt(variance + static_cast<double>(eps));
  scale_row(y, x, weight, bias, hidden_size, static_cast<float>(mean), static_cast<float>(scale));
}

void rms_norm_row(float* y, const float* x, const float* weight, int64_t hidden_size, float eps) {
  Simd::D squares = Simd::zero_d();
  int64_t i = 0;
  for (; i + kStep <= hidden_size; i += kStep) {
    squares = Simd::add_square_d(squares, Simd::widen_d(Simd::load(x + i)));
  }
  if (i < hidden_size) {
    squares = Simd::add_square_d(squares, Simd::widen_d(Simd::load_n(x + i, hidden_size - i)));
  }
  const double mean_square = Simd::sum_d(squares) / static_cast<double>(hidden_size);
  const double scale = 1.0 / __builtin_sqrt(mean_square + static_cast<double>(eps));
  scale_row(y, x, weight, nullptr, hidden_size, 0.0F, static_cast<float>(scale));
}

struct Relu {
  // max returns its second operand for NaN, so NaN stays.
  static Simd::F apply(Simd::F x) { return Simd::max(Simd::zero(), x); }
};
struct Gelu {
  static Simd::F apply(Simd::F x) { return Simd::mul(x, normal_distribution(x)); }
};
struct GeluTanh {
  // (1 + tanh u) / 2 = sigmoid(2u), which keeps its digits for negative u.
  static Simd::F apply(Simd::F x) {
    const Simd::F cube = Simd::mul(Simd::mul(x, x), x);
    const Simd::F u = Simd::fma(Simd::set1(0.044715F), cube, x);
    return Simd::mul(x, sigmoid(Simd::mul(u, Simd::set1(1.5957691216057308F))));
  }
};
struct Silu {
  static Simd::F apply(Simd::F x) { return Simd::mul(x, sigmoid(x)); }
};
struct QuickGelu {
  static Simd::F apply(Simd::F x) {
    return Simd::mul(x, sigmoid(Simd::mul(x, Simd::set1(1.702F))));
  }
};

template <class Op>
void activate(float* y, const float* x, const float* up, int64_t count) {
  for (int64_t i = 0; i < count; i += kStep) {
    const int64_t n = count - i;
    if (n >= kStep) {
      Simd::F v = Op::apply(Simd::load(x + i));
      if (up != nullptr) v = Simd::mul(v, Simd::load(up + i));
      Simd::store(y + i, v);
    } else {
      Simd::F v = Op::apply(Simd::load_n(x + i, n));
      if (up != nullptr) v = Simd::mul(v, Simd::load_n(up + i, n));
      Simd::store_n(y + i, v, n);
    }
  }
}

void activation_run(float* y, const float* x, const float* up, int64_t count, int op) {
  // The enumerators of ActivationOp, in order.
  switch (op) {
    case 0:
      return activate<Relu>(y, x, up, count);
    case 1:
      return activate<Gelu>(y, x, up, count);
    case 2:
      return activate<GeluTanh>(y, x, up, count);
    case 3:
      return activate<Silu>(y, x, up, count);
    default:
      return activate<QuickGelu>(y, x, up, count);
  }
}

}  // namespace
}  // namespace llmctl::kernels::cpu
