#include "runtime/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

#include "formats/core/error.h"
#include "kernels/convert.h"

namespace llmctl::runtime {
namespace {

/// powf with one rounding: the double result of F32 arguments, rounded.
float pow_f32(float base, float exponent) {
  return static_cast<float>(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
}

float to_bf16(float x) { return kernels::bfloat16_to_float(kernels::float_to_bfloat16(x)); }

double yarn_mscale(double scale, double mscale) {
  return scale <= 1.0 ? 1.0 : 0.1 * mscale * std::log(scale) + 1.0;
}

double yarn_attention_factor(const RopeScaling& s) {
  if (s.attention_factor != 0.0) return s.attention_factor;
  if (s.mscale != 0.0 && s.mscale_all_dim != 0.0) {
    return yarn_mscale(s.factor, s.mscale) / yarn_mscale(s.factor, s.mscale_all_dim);
  }
  return yarn_mscale(s.factor, 1.0);
}

double longrope_attention_factor(const RopeScaling& s, int64_t max_positions,
                                 int64_t original_positions) {
  if (s.attention_factor != 0.0) return s.attention_factor;
  const double original = static_cast<double>(original_positions);
  const double factor = s.factor > 1.0 ? s.factor : static_cast<double>(max_positions) / original;
  return factor <= 1.0 ? 1.0 : std::sqrt(1.0 + std::log(factor) / std::log(original));
}

/// arXiv:2309.00071: high frequencies are kept, low ones interpolated, a ramp in between.
std::vector<float> yarn(const std::vector<float>& powers, const RopeScaling& s, double theta,
                        int64_t rotary_dim, int64_t original_positions) {
  const double dim = static_cast<double>(rotary_dim);
  const auto correction = [&](double rotations) {
    return dim *
           std::log(static_cast<double>(original_positions) / (rotations * 2 * std::numbers::pi)) /
           (2 * std::log(theta));
  };
  double low = correction(s.beta_fast);
  double high = correction(s.beta_slow);
  if (s.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1);
  if (low == high) high += 0.001;
  std::vector<float> result(powers.size());
  for (size_t i = 0; i < powers.size(); ++i) {
    const float ramp =
        (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low);
    const float keep = 1.0F - std::clamp(ramp, 0.0F, 1.0F);
    const float extrapolated = 1.0F / powers[i];
    const float interpolated = 1.0F / (static_cast<float>(s.factor) * powers[i]);
    result[i] = interpolated * (1.0F - keep) + extrapolated * keep;
  }
  return result;
}

std::vector<float> llama3(const std::vector<float>& powers, const RopeScaling& s,
                          int64_t original_positions) {
  const auto original = static_cast<float>(original_positions);
  const double low_wavelength = static_cast<double>(original_positions) / s.low_freq_factor;
  const double high_wavelength = static_cast<double>(original_positions) / s.high_freq_factor;
  const auto factor = static_cast<float>(s.factor);
  std::vector<float> result(powers.size());
  for (size_t i = 0; i < powers.size(); ++i) {
    const float frequency = 1.0F / powers[i];
    const float wavelength = static_cast<float>(2 * std::numbers::pi) / frequency;
    if (wavelength > static_cast<float>(low_wavelength)) {
      result[i] = frequency / factor;
    } else if (wavelength < static_cast<float>(high_wavelength)) {
      result[i] = frequency;
    } else {
      const float smooth = (original / wavelength - static_cast<float>(s.low_freq_factor)) /
                           static_cast<float>(s.high_freq_factor - s.low_freq_factor);
      result[i] = (1.0F - smooth) * frequency / factor + smooth * frequency;
    }
  }
  return result;
}

}  // namespace

Rope::Rope(const ModelConfig& config)
    : scaling_(config.rope_scaling),
      rotary_dim_(config.rotary_dim),
      num_pairs_(config.rotary_dim / 2),
      max_positions_(config.max_position_embeddings),
      original_positions_(config.rope_scaling.original_max_position_embeddings > 0
                              ? config.rope_scaling.original_max_position_embeddings
                              : config.max_position_embeddings),
      theta_(config.rope_theta),
      in_bf16_(config.rope_in_bf16) {
  const std::string& kind = scaling_.kind;
  if (kind == "yarn") {
    attention_scaling_ = static_cast<float>(yarn_attention_factor(scaling_));
  } else if (kind == "longrope") {
    attention_scaling_ = static_cast<float>(
        longrope_attention_factor(scaling_, max_positions_, original_positions_));
    const auto pairs = static_cast<size_t>(num_pairs_);
    if (scaling_.short_factor.size() != pairs || scaling_.long_factor.size() != pairs) {
      throw_invalid("rope_scaling", "longrope needs " + std::to_string(pairs) +
                                        " short and long factors, has " +
                                        std::to_string(scaling_.short_factor.size()) + " and " +
                                        std::to_string(scaling_.long_factor.size()));
    }
  } else if (kind != "default" && kind != "linear" && kind != "dynamic" && kind != "llama3") {
    throw_invalid("rope_scaling", "unknown kind '" + printable(kind) + "'",
                  "known are default, linear, dynamic, yarn, llama3 and longrope");
  }
}

std::vector<float> Rope::powers(float base) const {
  std::vector<float> result(static_cast<size_t>(num_pairs_));
  for (size_t i = 0; i < result.size(); ++i) {
    result[i] = pow_f32(base, static_cast<float>(2 * i) / static_cast<float>(rotary_dim_));
  }
  return result;
}

std::vector<float> Rope::compute(int64_t length) const {
  const std::string& kind = scaling_.kind;
  auto base = static_cast<float>(theta_);
  if (kind == "dynamic" && length > max_positions_) {
    // NTK: the base grows so that the lowest frequency spans the longer sequence.
    const auto factor = static_cast<float>(scaling_.factor);
    const float stretch = factor * static_cast<float>(length) / static_cast<float>(max_positions_) -
                          static_cast<float>(scaling_.factor - 1.0);
    const double exponent = static_cast<double>(rotary_dim_) / static_cast<double>(rotary_dim_ - 2);
    base = base * pow_f32(stretch, static_cast<float>(exponent));
  }
  std::vector<float> result = powers(base);
  if (kind == "yarn") return yarn(result, scaling_, theta_, rotary_dim_, original_positions_);
  if (kind == "llama3") return llama3(result, scaling_, original_positions_);
  const std::vector<double>* factors = nullptr;
  if (kind == "longrope") {
    factors = length > original_positions_ ? &scaling_.long_factor : &scaling_.short_factor;
  }
  for (size_t i = 0; i < result.size(); ++i) {
    const float stretch = factors != nullptr ? static_cast<float>((*factors)[i]) : 1.0F;
    result[i] = 1.0F / (stretch * result[i]);
    if (kind == "linear") result[i] /= static_cast<float>(scaling_.factor);
  }
  return result;
}

int64_t Rope::length_key(int64_t length) const {
  if (scaling_.kind == "dynamic") return std::max(length, max_positions_);
  if (scaling_.kind == "longrope") return length > original_positions_ ? 1 : 0;
  return 0;
}

const std::vector<float>& Rope::frequencies(int64_t length) {
  const int64_t key = length_key(length);
  if (key != cached_key_) {
    cached_ = compute(length);
    cached_key_ = key;
  }
  return cached_;
}

void Rope::fill(float* cos, float* sin, int64_t position, int64_t length) {
  const std::vector<float>& frequency = frequencies(length);
  const auto rounded = [this](float x) { return in_bf16_ ? to_bf16(x) : x; };
  for (size_t i = 0; i < frequency.size(); ++i) {
    const float angle = rounded(rounded(static_cast<float>(position)) * rounded(frequency[i]));
    const auto wide = static_cast<double>(angle);
    cos[i] = rounded(static_cast<float>(std::cos(wide))) * attention_scaling_;
    sin[i] = rounded(static_cast<float>(std::sin(wide))) * attention_scaling_;
  }
}

}  // namespace llmctl::runtime
