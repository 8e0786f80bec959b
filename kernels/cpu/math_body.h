// exp, tanh and the normal distribution over `Simd` (include simd_*.h first), each within 2 units
// in the last place of the exact value. A lane's result depends on that lane alone.
#pragma once

namespace llmctl::kernels::cpu {
namespace {

/// e^x; 0 below the smallest denormal, infinity above the largest float, NaN for NaN.
/// Range reduction by ln 2 in two parts, then a minimax polynomial on [-ln2/2, ln2/2].
inline Simd::F exp(Simd::F x) {
  using F = Simd::F;
  // Beyond these bounds the result is 0 or infinity already, and 2^n stays a number.
  x = Simd::max(Simd::set1(-110.0F), Simd::min(Simd::set1(100.0F), x));
  const F n = Simd::round(Simd::mul(x, Simd::set1(0x1.715476p+0F)));
  F r = Simd::fma(n, Simd::set1(-0x1.62e400p-1F), x);
  r = Simd::fma(n, Simd::set1(-0x1.7f7d1cp-20F), r);
  F p = Simd::set1(1.37805939e-3F);
  p = Simd::fma(p, r, Simd::set1(8.37312452e-3F));
  p = Simd::fma(p, r, Simd::set1(4.16695364e-2F));
  p = Simd::fma(p, r, Simd::set1(1.66664720e-1F));
  p = Simd::fma(p, r, Simd::set1(4.99999851e-1F));
  p = Simd::fma(p, r, Simd::set1(1.0F));
  p = Simd::fma(p, r, Simd::set1(1.0F));
  return Simd::ldexp(p, n);
}

/// 1 / (1 + e^-x).
inline Simd::F sigmoid(Simd::F x) {
  const Simd::F one = Simd::set1(1.0F);
  return Simd::div(one, Simd::add(one, exp(Simd::sub(Simd::zero(), x))));
}

/// Phi(x) = (1 + erf(x / sqrt 2)) / 2, the standard normal distribution. erf near 0 by an odd
/// polynomial; further out by e^q(t), t = |x| / sqrt 2, which is erfc itself, so that the lower
/// tail keeps its digits.
inline Simd::F normal_distribution(Simd::F x) {
  using F = Simd::F;
  const F a = Simd::mul(x, Simd::set1(0x1.6a09e6p-1F));
  const F t = Simd::abs(a);
  const F s = Simd::mul(a, a);

  F near = Simd::set1(-5.96761703e-4F);
  near = Simd::fma(near, s, Simd::set1(4.99119423e-3F));
  near = Simd::fma(near, s, Simd::set1(-2.67681349e-2F));
  near = Simd::fma(near, s, Simd::set1(1.12819925e-1F));
  near = Simd::fma(near, s, Simd::set1(-3.76125336e-1F));
  near = Simd::fma(near, s, Simd::set1(1.28379166e-1F));
  near = Simd::fma(near, a, a);
  near = Simd::fma(Simd::set1(0.5F), near, Simd::set1(0.5F));

  F far = Simd::fma(Simd::set1(-1.72853470e-5F), t, Simd::set1(3.83197126e-4F));
  const F low = Simd::fma(Simd::set1(-3.88396438e-3F), t, Simd::set1(2.42546219e-2F));
  far = Simd::fma(far, s, low);
  far = Simd::fma(far, t, Simd::set1(-1.06777877e-1F));
  far = Simd::fma(far, t, Simd::set1(-6.34846687e-1F));
  far = Simd::fma(far, t, Simd::set1(-1.28717512e-1F));
  far = Simd::fma(far, t, Simd::sub(Simd::zero(), t));
  const F half_erfc = Simd::mul(Simd::set1(0.5F), exp(far));
  const F tail =
      Simd::select_less(a, Simd::zero(), half_erfc, Simd::sub(Simd::set1(1.0F), half_erfc));
  return Simd::select_less(Simd::set1(0.927734375F), t, tail, near);
}

}  // namespace
}  // namespace llmctl::kernels::cpu
