#include "kernels/quantized.h"

#include <array>
#include <cmath>
#include <limits>
#include <string>

#include "kernels/cpu/quantized_panels.h"
#include "tests/kernels/kernel_test.h"

namespace llmctl {
namespace {

using kernels::PanelMatrix;
using kernels::Quantization;
using kernels::QuantizeResult;
using test::random_floats;
using test::same_bytes;

constexpr Quantization kAll[] = {{8, 0},  {4, 0},   {8, 32},  {4, 32}, {8, 64},
                                 {4, 64}, {4, 128}, {8, 256}, {4, 256}};

/// A matrix quantised by the reference, with its integers and scales.
struct Problem {
  Quantization q;
  int64_t num_tokens, n, k, blocks;
  std::vector<float> x, bias, w;
  std::vector<unsigned char> panels;
  std::vector<int8_t> values;
  std::vector<float> scales;

  Problem(Quantization how, int64_t tokens, int64_t rows, int64_t columns)
      : q(how),
        num_tokens(tokens),
        n(rows),
        k(columns),
        blocks(kernels::quantized_blocks(how, columns)),
        x(random_floats(static_cast<size_t>(tokens * columns), 1)),
        bias(random_floats(static_cast<size_t>(rows), 2)),
        w(random_floats(static_cast<size_t>(rows * columns), 3)) {
    quantize();
  }

  void quantize() {
    panels.resize(static_cast<size_t>(kernels::quantized_matrix_bytes(q, n, k).value()));
    kernels::reference::quantize_panels(panels.data(), w.data(), DType::F32, n, k, q);
    values.resize(static_cast<size_t>(n * k));
    scales.resize(static_cast<size_t>(n * blocks));
    kernels::unpack_quantized(values.data(), scales.data(), panels.data(), n, k, q);
  }

  PanelMatrix matrix() const {
    PanelMatrix m;
    m.data = panels.data();
    m.rows = n;
    m.columns = k;
    m.quantization = q;
    return m;
  }

  void run(const kernels::cpu::QuantizedKernel& kernel, float* y, int64_t first, int64_t count,
           int64_t y_stride, ThreadPool& pool) const {
    // Of the exact size, so that ASan sees what is read behind it.
    std::vector<float> scratch(static_cast<size_t>(kernels::quantized_scratch_floats(count, k)));
    const std::vector<float> own(x.begin() + first * k, x.begin() + (first + count) * k);
    kernels::cpu::quantized_linear(kernel, y, own.data(), matrix(), bias.data(), count, y_stride,
                                   scratch.data(), pool);
  }
  std::vector<float> run(const kernels::cpu::QuantizedKernel& kernel, ThreadPool& pool) const {
    std::vector<float> y(static_cast<size_t>(num_tokens * n), -1.0F);
    run(kernel, y.data(), 0, num_tokens, n, pool);
    return y;
  }

  double weight(int64_t row, int64_t column) const {
    const int64_t b = q.group_size == 0 ? 0 : column / q.group_size;
    return static_cast<double>(scales[static_cast<size_t>(row * blocks + b)]) *
           values[static_cast<size_t>(row * k + column)];
  }

  /// What kernels/quantized.h allows between a result and the reference.
  double bound(int64_t token, int64_t row) const {
    const int64_t width = q.group_size == 0 ? kernels::cpu::kActivationColumns : q.group_size;
    double rounded = 0, total = std::fabs(static_cast<double>(bias[static_cast<size_t>(row)]));
    for (int64_t first = 0; first < k; first += width) {
      double largest = 0, weights = 0;
      for (int64_t i = first; i < std::min(k, first + width); ++i) {
        const double activation =
            std::fabs(static_cast<double>(x[static_cast<size_t>(token * k + i)]));
        largest = std::max(largest, activation);
        weights += std::fabs(weight(row, i));
        total += activation * std::fabs(weight(row, i));
      }
      rounded += largest / 65534 * weights;
    }
    // Blocks are added in F32; each is scaled with three roundings.
    return rounded * 1.001 + total * 0x1p-23 * (4 + 0.5 * static_cast<double>(k / width)) + 1e-37;
  }
};

}  // namespace

TEST_CASE("quantized: packing equals the reference for every dtype and odd size") {
  for (const Quantization& q : kAll) {
    for (const auto& [n, k] : {std::array<int64_t, 2>{1, 1},
                               {5, 7},
                               {16, 64},
                               {17, 256},
                               {33, 512},
                               {48, 100},
                               {3, 8}}) {
      if (!kernels::can_quantize(q, k)) continue;
      CAPTURE(q.bits);
      CAPTURE(q.group_size);
      CAPTURE(n);
      CAPTURE(k);
      std::vector<float> w = random_floats(static_cast<size_t>(n * k), 7, 0.1F);
      for (int64_t i = 0; i < k; ++i) w[static_cast<size_t>(i)] = 0;  // a row of zeros
      const size_t bytes = static_cast<size_t>(kernels::quantized_matrix_bytes(q, n, k).value());
      for (const DType dtype : {DType::F32, DType::F16, DType::BF16}) {
        const auto stored = test::stored_as(w, dtype);
        std::vector<unsigned char> got(bytes, 0xAA), want(bytes, 0x55);
        const QuantizeResult made =
            kernels::quantize_panels(got.data(), stored.data(), dtype, n, k, q);
        const QuantizeResult wanted =
            kernels::reference::quantize_panels(want.data(), stored.data(), dtype, n, k, q);
        CHECK(made.fault == QuantizeResult::Fault::kNone);
        CHECK(same_bytes(got, want));
        CHECK(made.error_squares == doctest::Approx(wanted.error_squares));
        CHECK(made.weight_squares == doctest::Approx(wanted.weight_squares));
        CHECK(made.max_error == wanted.max_error);
        // Piece by piece, as files are written.
        const size_t panel = kernels::quantized_panel_bytes(q, k);
        std::vector<unsigned char> pieces(bytes, 0xAA);
        for (int64_t row = 0; row < n; row += 16) {
          kernels::quantize_panels(
              pieces.data() + static_cast<size_t>(row / 16) * panel,
              stored.data() + static_cast<size_t>(row * k) * dtype_bytes(dtype), dtype,
              std::min<int64_t>(16, n - row), k, q);
        }
        CHECK(same_bytes(pieces, want));
      }
    }
  }
}

TEST_CASE("quantized: halves round away from zero and the largest weight is the bound") {
  // Scale 1: q is w, rounded.
  const std::vector<float> w = {127, -126.5F, 0.5F, -0.5F, 1.5F, 2.5F, 0.49999997F, -3.4999998F};
  const int8_t want[] = {127, -127, 1, -1, 2, 3, 0, -3};
  std::vector<unsigned char> panels(
      static_cast<size_t>(kernels::quantized_matrix_bytes({8, 0}, 1, 8).value()));
  kernels::quantize_panels(panels.data(), w.data(), DType::F32, 1, 8, {8, 0});
  std::array<int8_t, 8> values{};
  float scale = 0;
  kernels::unpack_quantized(values.data(), &scale, panels.data(), 1, 8, {8, 0});
  CHECK(scale == 1);
  for (size_t i = 0; i < values.size(); ++i) CHECK(values[i] == want[i]);
}

TEST_CASE("quantized: zeros and tiny weights have scales that can be divided by") {
  for (const Quantization& q : {Quantization{8, 0}, {4, 0}, {8, 32}, {4, 32}}) {
    CAPTURE(q.bits);
    CAPTURE(q.group_size);
    std::vector<float> w(64, 0.0F);
    w[1] = -0.0F;
    for (size_t i = 32; i < 64; ++i) w[i] = 1e-9F * static_cast<float>(i);
    std::vector<unsigned char> panels(
        static_cast<size_t>(kernels::quantized_matrix_bytes(q, 2, 32).value()));
    const auto result = kernels::quantize_panels(panels.data(), w.data(), DType::F32, 2, 32, q);
    CHECK(result.fault == QuantizeResult::Fault::kNone);
    std::vector<float> scales(2), back(64);
    kernels::unpack_quantized(nullptr, scales.data(), panels.data(), 2, 32, q);
    CHECK(scales[0] == 1);
    CHECK(scales[1] > 0);
    kernels::dequantize_panels(back.data(), panels.data(), 2, 32, q);
    for (size_t i = 0; i < 32; ++i) CHECK(back[i] == 0);
    // F16's least number is 6e-8: what is smaller becomes zero, not infinite.
    for (size_t i = 32; i < 64; ++i) CHECK(std::fabs(back[i] - w[i]) <= 6.4e-8F);
  }
  std::vector<unsigned char> panels(
      static_cast<size_t>(kernels::quantized_matrix_bytes({8, 0}, 1, 1).value()));
  const float least = std::numeric_limits<float>::denorm_min();
  kernels::quantize_panels(panels.data(), &least, DType::F32, 1, 1, {8, 0});
  float back = 0;
  kernels::dequantize_panels(&back, panels.data(), 1, 1, {8, 0});
  CHECK(back == least);
}

TEST_CASE("quantized: what cannot be quantised is found at its place") {
  using Fault = QuantizeResult::Fault;
  std::vector<unsigned char> panels(
      static_cast<size_t>(kernels::quantized_matrix_bytes({4, 32}, 20, 64).value()));
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    for (const int64_t group : {0, 32}) {
      std::vector<float> w(20 * 64, 1.0F);
      w[18 * 64 + 41] = bad;
      const auto result =
          kernels::quantize_panels(panels.data(), w.data(), DType::F32, 20, 64, {4, group});
      CHECK(result.fault == Fault::kNotFinite);
      CHECK(result.fault_row == 18);
      CHECK(result.fault_column == 41);
    }
  }
  std::vector<float> large(20 * 64, 1.0F);
  large[3 * 64 + 60] = 1e6F;
  const auto result =
      kernels::quantize_panels(panels.data(), large.data(), DType::F32, 20, 64, {4, 32});
  CHECK(result.fault == Fault::kTooLarge);
  CHECK(result.fault_row == 3);
  CHECK(result.fault_column == 32);
  CHECK(kernels::quantize_panels(panels.data(), large.data(), DType::F32, 20, 64, {4, 0}).fault ==
        Fault::kNone);
}

TEST_CASE("quantized: integers and scales given back make the same panels") {
  for (const Quantization& q : kAll) {
    CAPTURE(q.bits);
    CAPTURE(q.group_size);
    Problem problem(q, 1, 37, 512);
    // Scales that no absolute maximum would give again.
    for (float& w : problem.w) w *= 3e-7F;
    problem.quantize();
    std::vector<float> rows(static_cast<size_t>(37 * 512));
    kernels::dequantize_panels(rows.data(), problem.panels.data(), 37, 512, q);
    std::vector<unsigned char> again(problem.panels.size(), 0xAA);
    const auto result = kernels::quantize_panels(again.data(), rows.data(), DType::F32, 37, 512, q,
                                                 problem.scales.data());
    CHECK(same_bytes(again, problem.panels));
    CHECK(result.error_squares == 0);
  }
}

TEST_CASE("quantized: rows of a slice are those of the whole") {
  for (const Quantization& q : {Quantization{8, 0}, {4, 64}}) {
    const Problem whole(q, 1, 70, 128);
    for (const int64_t first : {0, 1, 35, 69}) {
      const int64_t count = std::min<int64_t>(17, 70 - first);
      std::vector<unsigned char> panels(
          static_cast<size_t>(kernels::quantized_matrix_bytes(q, count, 128).value()));
      kernels::quantize_panels(panels.data(), whole.w.data() + first * 128, DType::F32, count, 128,
                               q);
      std::vector<int8_t> values(static_cast<size_t>(count * 128));
      std::vector<float> scales(static_cast<size_t>(count * whole.blocks));
      kernels::unpack_quantized(values.data(), scales.data(), panels.data(), count, 128, q);
      CHECK(std::equal(values.begin(), values.end(), whole.values.begin() + first * 128));
      CHECK(std::equal(scales.begin(), scales.end(), whole.scales.begin() + first * whole.blocks));
    }
  }
}

TEST_CASE("quantized: products are within the bound of the F64 reference on every ISA") {
  ThreadPool pool(2);
  for (const Quantization& q : kAll) {
    for (const auto& [tokens, n, k] : {std::array<int64_t, 3>{1, 1, 1},
                                       {1, 5, 7},
                                       {1, 130, 1300},
                                       {1, 70, 512},
                                       {4, 131, 40},
                                       {2, 17, 71},
                                       {3, 4, 256},
                                       {5, 33, 129},
                                       {7, 64, 256},
                                       {8, 19, 255},
                                       {13, 70, 768},
                                       {40, 21, 513}}) {
      if (!kernels::can_quantize(q, k)) continue;
      CAPTURE(q.bits);
      CAPTURE(q.group_size);
      CAPTURE(tokens);
      CAPTURE(n);
      CAPTURE(k);
      const Problem problem(q, tokens, n, k);
      std::vector<float> want(static_cast<size_t>(tokens * n));
      kernels::reference::quantized_linear(want.data(), problem.x.data(), problem.values.data(),
                                           problem.scales.data(), q, problem.bias.data(), tokens, n,
                                           k, n);
      const std::vector<float> generic = problem.run(kernels::cpu::kGenericQuantized, pool);
      double worst = 0;
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t row = 0; row < n; ++row) {
          const auto at = static_cast<size_t>(t * n + row);
          const double off =
              std::fabs(static_cast<double>(generic[at]) - static_cast<double>(want[at]));
          worst = std::max(worst, off / problem.bound(t, row));
        }
      }
      CHECK(worst <= 1);
      for (const auto* kernel : kernels::cpu::quantized_kernels()) {
        CAPTURE(std::string(kernel->name));
        CHECK(same_bytes(problem.run(*kernel, pool), generic));
      }
    }
  }
}

TEST_CASE("quantized: integer activations give exact sums") {
  // Scales of one and activations whose scale is a power of two: nothing is rounded.
  ThreadPool pool(1);
  for (const Quantization& q : {Quantization{8, 0}, {4, 64}}) {
    Problem problem(q, 2, 20, 192);
    const int bound = kernels::quantization_bound(q);
    for (size_t i = 0; i < problem.w.size(); ++i) {
      const auto wide = static_cast<int>(i % 53) - 26;
      problem.w[i] = static_cast<float>(std::clamp(wide, -bound, bound));
      if (i % 16 == 0) problem.w[i] = static_cast<float>(bound);
    }
    problem.quantize();
    for (size_t i = 0; i < problem.x.size(); ++i) {
      problem.x[i] = i % 32 == 0 ? 32767.0F : static_cast<float>(static_cast<int>(i % 301) - 150);
    }
    for (float& b : problem.bias) b = 0;
    for (const auto* kernel : kernels::cpu::quantized_kernels()) {
      CAPTURE(std::string(kernel->name));
      const std::vector<float> got = problem.run(*kernel, pool);
      for (int64_t t = 0; t < 2; ++t) {
        for (int64_t row = 0; row < 20; ++row) {
          int64_t want = 0;
          for (int64_t i = 0; i < 192; ++i) {
            want += static_cast<int64_t>(problem.w[static_cast<size_t>(row * 192 + i)]) *
                    static_cast<int64_t>(problem.x[static_cast<size_t>(t * 192 + i)]);
          }
          CHECK(got[static_cast<size_t>(t * 20 + row)] == static_cast<float>(want));
        }
      }
    }
  }
}

TEST_CASE("quantized: a token's result has the same bits whatever tokens share the call") {
  ThreadPool one(1);
  ThreadPool three(3);
  for (const Quantization& q : {Quantization{8, 0}, {4, 0}, {8, 64}, {4, 64}}) {
    for (const int64_t k : {31, 64, 200, 1088}) {
      if (!kernels::can_quantize(q, k)) continue;
      const int64_t n = 37;
      const Problem problem(q, 41, n, k);
      for (const auto* kernel : kernels::cpu::quantized_kernels()) {
        CAPTURE(q.bits);
        CAPTURE(k);
        CAPTURE(std::string(kernel->name));
        const std::vector<float> whole = problem.run(*kernel, one);
        CHECK(same_bytes(problem.run(*kernel, three), whole));
        for (const int64_t part : {1, 2, 3, 5, 6, 7, 8, 11, 33}) {
          CAPTURE(part);
          std::vector<float> y(whole.size(), -1.0F);
          for (int64_t t = 0; t < problem.num_tokens; t += part) {
            const int64_t count = std::min(part, problem.num_tokens - t);
            problem.run(*kernel, y.data() + t * n, t, count, n, three);
          }
          CHECK(same_bytes(y, whole));
        }
      }
    }
  }
}

TEST_CASE("quantized: extremes of weights and activations do not overflow") {
  ThreadPool pool(1);
  for (const Quantization& q : {Quantization{8, 0}, {4, 0}, {8, 256}, {4, 256}}) {
    for (const float sign : {1.0F, -1.0F}) {
      Problem problem(q, 1, 3, 512);
      for (float& w : problem.w) w = sign * 100;
      for (float& x : problem.x) x = 1e30F;
      for (float& b : problem.bias) b = 0;
      problem.quantize();
      for (const auto* kernel : kernels::cpu::quantized_kernels()) {
        for (const float y : problem.run(*kernel, pool)) {
          CHECK(y == doctest::Approx(static_cast<double>(sign) * 5.12e34).epsilon(1e-3));
        }
      }
    }
  }
}

TEST_CASE("quantized: a foreign weight of -128 is multiplied as it is") {
  ThreadPool pool(1);
  Problem problem({8, 0}, 1, 1, 64);
  for (float& w : problem.w) w = 127;
  problem.quantize();
  for (size_t i = 0; i < 64; i += 2) problem.panels[i * 16] = 0x80;  // row 0, even columns
  for (float& x : problem.x) x = 2;
  problem.bias[0] = 0;
  for (const auto* kernel : kernels::cpu::quantized_kernels()) {
    CHECK(problem.run(*kernel, pool)[0] == doctest::Approx(2 * 32 * (127 - 128)));
  }
}

TEST_CASE("quantized: zeros and tiny activations count as nothing and NaN spoils its token alone") {
  ThreadPool pool(1);
  for (const Quantization& q : {Quantization{8, 0}, {4, 64}}) {
    Problem problem(q, 4, 18, 256);
    for (int64_t i = 0; i < 256; ++i) {
      problem.x[static_cast<size_t>(i)] = 0;
      problem.x[static_cast<size_t>(256 + i)] = i % 2 == 0 ? 1e-38F : -1e-42F;
    }
    problem.x[2 * 256 + 77] = std::numeric_limits<float>::quiet_NaN();
    const std::vector<float> generic = problem.run(kernels::cpu::kGenericQuantized, pool);
    for (const auto* kernel : kernels::cpu::quantized_kernels()) {
      CAPTURE(std::string(kernel->name));
      const std::vector<float> y = problem.run(*kernel, pool);
      for (size_t row = 0; row < 18; ++row) {
        CHECK(y[row] == problem.bias[row]);
        CHECK(y[18 + row] == problem.bias[row]);
        CHECK(std::isnan(y[36 + row]));
        CHECK(y[54 + row] == generic[54 + row]);
        CHECK(std::isfinite(y[54 + row]));
      }
    }
    problem.x[2 * 256 + 77] = std::numeric_limits<float>::infinity();
    for (const auto* kernel : kernels::cpu::quantized_kernels()) {
      CHECK(std::isnan(problem.run(*kernel, pool)[36]));
    }
  }
}

TEST_CASE("quantized: rows of a result may lie apart") {
  ThreadPool pool(1);
  const Problem problem({4, 64}, 3, 21, 128);
  for (const auto* kernel : kernels::cpu::quantized_kernels()) {
    const std::vector<float> dense = problem.run(*kernel, pool);
    std::vector<float> apart(3 * 30, -7.0F);
    problem.run(*kernel, apart.data(), 0, 3, 30, pool);
    for (size_t t = 0; t < 3; ++t) {
      for (size_t row = 0; row < 30; ++row) {
        CHECK(apart[t * 30 + row] == (row < 21 ? dense[t * 21 + row] : -7.0F));
      }
    }
  }
}

TEST_CASE("quantized: groups that do not divide the columns cannot be") {
  CHECK(kernels::can_quantize({4, 64}, 128));
  CHECK_FALSE(kernels::can_quantize({4, 64}, 100));
  CHECK_FALSE(kernels::can_quantize({4, 48}, 96));
  CHECK_FALSE(kernels::can_quantize({5, 0}, 96));
  CHECK_FALSE(kernels::can_quantize({}, 96));
  CHECK(kernels::quantized_matrix_bytes({4, 64}, 32, 128).value() == 2 * 2 * (512 + 32));
  CHECK(kernels::quantized_matrix_bytes({8, 0}, 17, 9).value() == 2 * (16 * 16 + 64));
  CHECK_FALSE(kernels::quantized_matrix_bytes({8, 0}, -1, 9).has_value());
  CHECK_FALSE(kernels::quantized_matrix_bytes({8, 0}, INT64_MAX, INT64_MAX).has_value());
}

}  // namespace llmctl
