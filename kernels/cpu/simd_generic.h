// Four floats in an array: the words that the shared kernel bodies are written in, for any CPU.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/convert.h"

namespace llmctl::kernels::cpu {
namespace {

struct Simd {
  static constexpr int64_t kWidth = 4;
  struct F {
    float lane[4];
  };
  /// Four doubles, for sums that must not lose bits.
  struct D {
    double lane[4];
  };

  template <typename Op>
  static F map(const Op& op) {
    return {{op(0), op(1), op(2), op(3)}};
  }
  template <typename Op>
  static D map_d(const Op& op) {
    return {{op(0), op(1), op(2), op(3)}};
  }

  static F zero() { return {}; }
  static F set1(float x) { return {{x, x, x, x}}; }
  static F load(const float* p) { return {{p[0], p[1], p[2], p[3]}}; }
  /// The first n < kWidth elements, then zeros.
  static F load_n(const float* p, int64_t n) {
    return map([&](int i) { return i < n ? p[i] : 0.0F; });
  }
  static void store(float* p, F v) { store_n(p, v, kWidth); }
  static void store_n(float* p, F v, int64_t n) {
    for (int64_t i = 0; i < n; ++i) p[i] = v.lane[i];
  }

  static F load_f16(const uint16_t* p) { return load_f16_n(p, kWidth); }
  static F load_f16_n(const uint16_t* p, int64_t n) {
    return map([&](int i) { return i < n ? half_to_float(p[i]) : 0.0F; });
  }
  static F load_bf16(const uint16_t* p) { return load_bf16_n(p, kWidth); }
  static F load_bf16_n(const uint16_t* p, int64_t n) {
    return map([&](int i) { return i < n ? bfloat16_to_float(p[i]) : 0.0F; });
  }

  /// Two BF16 to a lane, as panels have them.
  struct Pairs {
    uint16_t element[8];
  };
  static Pairs load_pairs(const uint16_t* p) {
    return {{p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]}};
  }
  static F widen_low(Pairs v) {
    return map([&](int i) { return bfloat16_to_float(v.element[2 * i]); });
  }
  static F widen_high(Pairs v) {
    return map([&](int i) { return bfloat16_to_float(v.element[2 * i + 1]); });
  }

  static F add(F a, F b) {
    return map([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static F sub(F a, F b) {
    return map([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static F mul(F a, F b) {
    return map([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static F div(F a, F b) {
    return map([&](int i) { return a.lane[i] / b.lane[i]; });
  }
  /// a * b + c, rounded twice.
  static F fma(F a, F b, F c) { return add(mul(a, b), c); }
  /// The second operand when either is NaN.
  static F min(F a, F b) {
    return map([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static F max(F a, F b) {
    return map([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static F abs(F a) {
    return map([&](int i) { return std::fabs(a.lane[i]); });
  }
  static F copysign(F a, F b) {
    return map([&](int i) { return std::copysign(a.lane[i], b.lane[i]); });
  }
  /// a < b ? x : y, lane by lane.
  static F select_less(F a, F b, F x, F y) {
    return map([&](int i) { return a.lane[i] < b.lane[i] ? x.lane[i] : y.lane[i]; });
  }
  static F round(F a) {
    return map([&](int i) { return std::nearbyint(a.lane[i]); });
  }
  /// a * 2^n for integral n.
  static F ldexp(F a, F n) {
    return map([&](int i) {
      return std::isnan(n.lane[i]) ? n.lane[i] : std::ldexp(a.lane[i], static_cast<int>(n.lane[i]));
    });
  }

  /// Sum of all lanes, always in the same tree.
  static float sum(F v) { return (v.lane[0] + v.lane[2]) + (v.lane[1] + v.lane[3]); }
  /// to[i] = sum(v[i]) for i < 4, in the same tree.
  static void sum4(float* to, F a, F b, F c, F d) {
    to[0] = sum(a);
    to[1] = sum(b);
    to[2] = sum(c);
    to[3] = sum(d);
  }

  static D zero_d() { return {}; }
  static D set1_d(double x) { return {{x, x, x, x}}; }
  static D load_d(const double* p) { return {{p[0], p[1], p[2], p[3]}}; }
  /// a * b + c, rounded twice.
  static D fma_d(D a, D b, D c) {
    return map_d([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
  }
  static F narrow_d(D a) {
    return map([&](int i) { return static_cast<float>(a.lane[i]); });
  }
  static D widen_d(F v) {
    return map_d([&](int i) { return static_cast<double>(v.lane[i]); });
  }
  static D add_d(D a, D b) {
    return map_d([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static D sub_d(D a, double b) {
    return map_d([&](int i) { return a.lane[i] - b; });
  }
  /// a + b * b
  static D add_square_d(D a, D b) {
    return map_d([&](int i) { return a.lane[i] + b.lane[i] * b.lane[i]; });
  }
  /// The first n lanes of `a`, then zeros.
  static D keep_d(D a, int64_t n) {
    return map_d([&](int i) { return i < n ? a.lane[i] : 0.0; });
  }
  static double sum_d(D a) { return (a.lane[0] + a.lane[2]) + (a.lane[1] + a.lane[3]); }
};

}  // namespace
}  // namespace llmctl::kernels::cpu
