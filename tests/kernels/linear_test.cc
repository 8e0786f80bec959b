#include "kernels/linear.h"

#include <bit>

#include "formats/core/error.h"
#include "kernels/cpu/dispatch.h"
#include "tests/kernels/kernel_test.h"

namespace llmctl {
namespace {

using kernels::Isa;
using test::random_floats;
using test::same_bytes;
using test::stored_as;
using test::worst_error;

using kernels::Activations;

struct Kind {
  DType dtype;
  Activations activations;
};
constexpr Kind kKinds[] = {{DType::F32, Activations::kF32},
                           {DType::F16, Activations::kF32},
                           {DType::BF16, Activations::kF32},
                           {DType::BF16, Activations::kBF16}};

struct Problem {
  int64_t num_tokens, n, k;
  std::vector<float> x, bias;
  std::vector<unsigned char> w;
  DType dtype;
  Activations activations;
  test::PackedMatrix panels;

  Problem(int64_t tokens, int64_t rows, int64_t cols, Kind kind)
      : num_tokens(tokens),
        n(rows),
        k(cols),
        x(random_floats(static_cast<size_t>(tokens * cols), 1)),
        bias(random_floats(static_cast<size_t>(rows), 2)),
        w(stored_as(random_floats(static_cast<size_t>(rows * cols), 3), kind.dtype)),
        dtype(kind.dtype),
        activations(kind.activations),
        panels(w, kind.dtype, rows, cols) {}

  /// What enters the product, as F32.
  std::vector<float> entering() const {
    if (activations == Activations::kF32) return x;
    const std::vector<unsigned char> bytes = stored_as(x, DType::BF16);
    std::vector<float> wide(x.size());
    kernels::convert(wide.data(), DType::F32, bytes.data(), DType::BF16,
                     static_cast<int64_t>(x.size()), kernels::Overflow::kInf);
    return wide;
  }

  /// Tokens [first, first + count).
  void run(Isa isa, float* y, int64_t first, int64_t count, int64_t y_stride,
           ThreadPool& pool) const {
    // Of the exact size, so that ASan sees what is read behind it.
    std::vector<float> scratch(static_cast<size_t>(kernels::linear_scratch_floats(count, k)));
    const std::vector<float> own(x.begin() + first * k, x.begin() + (first + count) * k);
    kernels::cpu::linear(isa, y, own.data(), panels, bias.data(), count, y_stride, activations,
                         scratch.data(), pool);
  }
  std::vector<float> run(Isa isa, ThreadPool& pool) const {
    std::vector<float> y(static_cast<size_t>(num_tokens * n), -1.0F);
    run(isa, y.data(), 0, num_tokens, n, pool);
    return y;
  }
};

}  // namespace

TEST_CASE("linear: equals the F64 reference for every dtype and odd size on every ISA") {
  ThreadPool pool(2);
  for (const Kind kind : kKinds) {
    for (const auto& [tokens, n, k] : {std::array<int64_t, 3>{1, 1, 1},
                                       {1, 5, 7},
                                       {1, 130, 1300},
                                       {4, 131, 40},
                                       {6, 66, 77},
                                       {2, 17, 71},
                                       {3, 4, 16},
                                       {5, 33, 129},
                                       {7, 64, 64},
                                       {8, 19, 255},
                                       {13, 70, 300},
                                       {17, 50, 128},
                                       {40, 21, 513}}) {
      CAPTURE(dtype_name(kind.dtype));
      CAPTURE(static_cast<int>(kind.activations));
      CAPTURE(tokens);
      CAPTURE(n);
      CAPTURE(k);
      const Problem problem(tokens, n, k, kind);
      std::vector<float> want(static_cast<size_t>(tokens * n));
      kernels::reference::linear(want.data(), problem.entering().data(), problem.w.data(),
                                 kind.dtype, problem.bias.data(), tokens, n, k, n);
      for (const Isa isa : kernels::available_isas()) {
        CAPTURE(kernels::isa_name(isa));
        // Products of two standard normals: the terms of a sum are about 0.64 each.
        CHECK(worst_error(problem.run(isa, pool), want, test::kLinearTolerance,
                          1.0 + 0.64 * static_cast<double>(k)) <= 1.0);
      }
    }
  }
}

TEST_CASE("linear: a token's result has the same bits whatever tokens share the call") {
  ThreadPool one(1);
  ThreadPool three(3);
  for (const Kind kind : kKinds) {
    for (const int64_t k : {1, 31, 64, 200, 1037}) {
      const int64_t n = 37;
      const Problem problem(64, n, k, kind);
      for (const Isa isa : kernels::available_isas()) {
        CAPTURE(dtype_name(kind.dtype));
        CAPTURE(static_cast<int>(kind.activations));
        CAPTURE(k);
        CAPTURE(kernels::isa_name(isa));
        const std::vector<float> whole = problem.run(isa, one);
        CHECK(same_bytes(problem.run(isa, three), whole));
        for (const int64_t part : {1, 2, 3, 5, 6, 7, 8, 11, 12, 33}) {
          CAPTURE(part);
          std::vector<float> y(whole.size(), -1.0F);
          for (int64_t t = 0; t < problem.num_tokens; t += part) {
            const int64_t count = std::min(part, problem.num_tokens - t);
            problem.run(isa, y.data() + t * n, t, count, n, three);
          }
          CHECK(same_bytes(y, whole));
        }
      }
    }
  }
}

TEST_CASE("linear: a row's result has the same bits whatever rows share the call") {
  ThreadPool pool(2);
  for (const Kind kind : kKinds) {
    for (const int64_t tokens : {1, 3, 9}) {
      const int64_t n = 60;
      const int64_t k = 333;
      const Problem problem(tokens, n, k, kind);
      for (const Isa isa : kernels::available_isas()) {
        CAPTURE(dtype_name(kind.dtype));
        CAPTURE(static_cast<int>(kind.activations));
        CAPTURE(tokens);
        CAPTURE(kernels::isa_name(isa));
        const std::vector<float> whole = problem.run(isa, pool);
        for (const int64_t part : {1, 2, 3, 4, 5, 7, 15, 30}) {
          // As tensor parallelism would: each part writes its columns of a wider y.
          std::vector<float> y(whole.size(), -1.0F);
          for (int64_t row = 0; row < n; row += part) {
            const int64_t count = std::min(part, n - row);
            const test::PackedMatrix rows(
                problem.w.data() + static_cast<size_t>(row * k) * dtype_bytes(kind.dtype),
                kind.dtype, count, k);
            std::vector<float> scratch(problem.x.size());
            kernels::cpu::linear(isa, y.data() + row, problem.x.data(), rows,
                                 problem.bias.data() + row, tokens, n, problem.activations,
                                 scratch.data(), pool);
          }
          CHECK(same_bytes(y, whole));
        }
      }
    }
  }
}

TEST_CASE("linear: large prefill blocks keep the bits of single tokens") {
  ThreadPool pool(2);
  for (const Kind kind : kKinds) {
    // Many tiles of tokens, more panels than a claim takes.
    const Problem problem(303, 267, 701, kind);
    for (const Isa isa : kernels::available_isas()) {
      CAPTURE(kernels::isa_name(isa));
      const std::vector<float> whole = problem.run(isa, pool);
      for (const int64_t t : {0, 5, 63, 64, 127, 200, 255, 256, 302}) {
        std::vector<float> y(267);
        problem.run(isa, y.data(), t, 1, 267, pool);
        CHECK(std::memcmp(y.data(), whole.data() + t * 267, 267 * sizeof(float)) == 0);
      }
    }
  }
}

TEST_CASE("linear: writes rows y_stride apart and leaves the gap alone") {
  ThreadPool pool(2);
  const Problem problem(3, 9, 20, {DType::F32, Activations::kF32});
  for (const Isa isa : kernels::available_isas()) {
    const std::vector<float> dense = problem.run(isa, pool);
    std::vector<float> y(3 * 14, -7.0F);
    problem.run(isa, y.data(), 0, 3, 14, pool);
    for (size_t t = 0; t < 3; ++t) {
      for (size_t i = 0; i < 14; ++i) {
        CHECK(y[t * 14 + i] == (i < 9 ? dense[t * 9 + i] : -7.0F));
      }
    }
  }
}

TEST_CASE("linear: AVX2 and AVX-512 give the same bits") {
  ThreadPool pool(1);
  const auto isas = kernels::available_isas();
  if (isas.size() < 3) return;
  for (const Kind kind : kKinds) {
    if (kind.activations != Activations::kF32) continue;  // the product of pairs rounds on its own
    for (const int64_t tokens : {1, 7, 30}) {
      const Problem problem(tokens, 37, 301, kind);
      CHECK(same_bytes(problem.run(isas[1], pool), problem.run(isas[2], pool)));
    }
  }
}

TEST_CASE("linear: infinities and NaN reach only the outputs that use them") {
  ThreadPool pool(1);
  for (const Kind kind : kKinds) {
    for (const Isa isa : kernels::available_isas()) {
      CAPTURE(dtype_name(kind.dtype));
      CAPTURE(static_cast<int>(kind.activations));
      CAPTURE(kernels::isa_name(isa));
      const int64_t k = 37;
      std::vector<float> w(6 * 37, 1.0F);
      w[0 * 37 + 36] = INFINITY;
      w[1 * 37 + 3] = NAN;
      w[2 * 37 + 36] = -INFINITY;
      const test::PackedMatrix panels(stored_as(w, kind.dtype), kind.dtype, 6, k);
      for (const size_t tokens : {1, 2, 20}) {
        CAPTURE(tokens);
        std::vector<float> x(tokens * 37, 1.0F);
        std::vector<float> y(tokens * 6);
        std::vector<float> scratch(x.size());
        kernels::cpu::linear(isa, y.data(), x.data(), panels, nullptr, static_cast<int64_t>(tokens),
                             6, kind.activations, scratch.data(), pool);
        for (size_t t = 0; t < tokens; ++t) {
          CHECK(y[t * 6 + 0] == INFINITY);
          CHECK(std::isnan(y[t * 6 + 1]));
          CHECK(y[t * 6 + 2] == -INFINITY);
          CHECK(y[t * 6 + 3] == 37.0F);
          CHECK(y[t * 6 + 5] == 37.0F);
        }
      }
    }
  }
}

TEST_CASE("linear: BF16 activations are rounded to nearest and even") {
  ThreadPool pool(1);
  const test::PackedMatrix one(stored_as({1.0F}, DType::BF16), DType::BF16, 1, 1);
  const auto bits = [](uint32_t value) { return std::bit_cast<float>(value); };
  for (const Isa isa : kernels::available_isas()) {
    CAPTURE(kernels::isa_name(isa));
    const auto enters_as = [&](float x) {
      float y = 0, scratch = 0;
      kernels::cpu::linear(isa, &y, &x, one, nullptr, 1, 1, Activations::kBF16, &scratch, pool);
      return y;
    };
    CHECK(enters_as(bits(0x3F80'8000)) == bits(0x3F80'0000));
    CHECK(enters_as(bits(0x3F81'8000)) == bits(0x3F82'0000));
    CHECK(enters_as(bits(0xBF80'8001)) == bits(0xBF81'0000));
    CHECK(enters_as(bits(0x7F7F'FFFF)) == INFINITY);
    CHECK(std::isnan(enters_as(bits(0x7F80'0001))));
  }
}

TEST_CASE("linear: BF16 activations with other weights are refused") {
  ThreadPool pool(1);
  float x = 1, y = 0, scratch = 0;
  for (const DType dtype : {DType::F32, DType::F16}) {
    const test::PackedMatrix one(stored_as({1.0F}, dtype), dtype, 1, 1);
    CHECK_THROWS_AS(kernels::linear(&y, &x, one, nullptr, 1, 1, Activations::kBF16, &scratch, pool),
                    Error);
  }
}

}  // namespace llmctl
