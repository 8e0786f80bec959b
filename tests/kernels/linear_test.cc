#include "kernels/linear.h"

#include "kernels/cpu/dispatch.h"
#include "tests/kernels/kernel_test.h"

namespace llmctl {
namespace {

using kernels::Isa;
using test::random_floats;
using test::same_bytes;
using test::stored_as;
using test::worst_error;

constexpr DType kWeightDTypes[] = {DType::F32, DType::F16, DType::BF16};

struct Problem {
  int64_t num_tokens, n, k;
  std::vector<float> x, bias;
  std::vector<unsigned char> w;
  DType dtype;
  test::PackedMatrix panels;

  Problem(int64_t tokens, int64_t rows, int64_t cols, DType w_dtype)
      : num_tokens(tokens),
        n(rows),
        k(cols),
        x(random_floats(static_cast<size_t>(tokens * cols), 1)),
        bias(random_floats(static_cast<size_t>(rows), 2)),
        w(stored_as(random_floats(static_cast<size_t>(rows * cols), 3), w_dtype)),
        dtype(w_dtype),
        panels(w, w_dtype, rows, cols) {}

  /// Tokens [first, first + count).
  void run(Isa isa, float* y, int64_t first, int64_t count, int64_t y_stride,
           ThreadPool& pool) const {
    // Of the exact size, so that ASan sees what is read behind it.
    std::vector<float> scratch(static_cast<size_t>(kernels::linear_scratch_floats(count, k)));
    const std::vector<float> own(x.begin() + first * k, x.begin() + (first + count) * k);
    kernels::cpu::linear(isa, y, own.data(), panels, bias.data(), count, y_stride, scratch.data(),
                         pool);
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
  for (const DType dtype : kWeightDTypes) {
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
      CAPTURE(dtype_name(dtype));
      CAPTURE(tokens);
      CAPTURE(n);
      CAPTURE(k);
      const Problem problem(tokens, n, k, dtype);
      std::vector<float> want(static_cast<size_t>(tokens * n));
      kernels::reference::linear(want.data(), problem.x.data(), problem.w.data(), dtype,
                                 problem.bias.data(), tokens, n, k, n);
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
  for (const DType dtype : kWeightDTypes) {
    for (const int64_t k : {1, 31, 64, 200, 1037}) {
      const int64_t n = 37;
      const Problem problem(64, n, k, dtype);
      for (const Isa isa : kernels::available_isas()) {
        CAPTURE(dtype_name(dtype));
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
  for (const DType dtype : kWeightDTypes) {
    for (const int64_t tokens : {1, 3, 9}) {
      const int64_t n = 60;
      const int64_t k = 333;
      const Problem problem(tokens, n, k, dtype);
      for (const Isa isa : kernels::available_isas()) {
        CAPTURE(dtype_name(dtype));
        CAPTURE(tokens);
        CAPTURE(kernels::isa_name(isa));
        const std::vector<float> whole = problem.run(isa, pool);
        for (const int64_t part : {1, 2, 3, 4, 5, 7, 15, 30}) {
          // As tensor parallelism would: each part writes its columns of a wider y.
          std::vector<float> y(whole.size(), -1.0F);
          for (int64_t row = 0; row < n; row += part) {
            const int64_t count = std::min(part, n - row);
            const test::PackedMatrix rows(
                problem.w.data() + static_cast<size_t>(row * k) * dtype_bytes(dtype), dtype, count,
                k);
            std::vector<float> scratch(problem.x.size());
            kernels::cpu::linear(isa, y.data() + row, problem.x.data(), rows,
                                 problem.bias.data() + row, tokens, n, scratch.data(), pool);
          }
          CHECK(same_bytes(y, whole));
        }
      }
    }
  }
}

TEST_CASE("linear: large prefill blocks keep the bits of single tokens") {
  ThreadPool pool(2);
  // More tokens than stay in L2, more columns than a block.
  const Problem problem(303, 67, 701, DType::BF16);
  for (const Isa isa : kernels::available_isas()) {
    CAPTURE(kernels::isa_name(isa));
    const std::vector<float> whole = problem.run(isa, pool);
    for (const int64_t t : {0, 5, 63, 64, 127, 200, 255, 256, 302}) {
      std::vector<float> y(67);
      problem.run(isa, y.data(), t, 1, 67, pool);
      CHECK(std::memcmp(y.data(), whole.data() + t * 67, 67 * sizeof(float)) == 0);
    }
  }
}

TEST_CASE("linear: writes rows y_stride apart and leaves the gap alone") {
  ThreadPool pool(2);
  const Problem problem(3, 9, 20, DType::F32);
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
  for (const DType dtype : kWeightDTypes) {
    for (const int64_t tokens : {1, 7, 30}) {
      const Problem problem(tokens, 37, 301, dtype);
      CHECK(same_bytes(problem.run(isas[1], pool), problem.run(isas[2], pool)));
    }
  }
}

TEST_CASE("linear: infinities and NaN reach only the outputs that use them") {
  ThreadPool pool(1);
  for (const DType dtype : kWeightDTypes) {
    for (const Isa isa : kernels::available_isas()) {
      CAPTURE(dtype_name(dtype));
      CAPTURE(kernels::isa_name(isa));
      const int64_t k = 37;
      std::vector<float> w(6 * 37, 1.0F);
      w[0 * 37 + 36] = INFINITY;
      w[1 * 37 + 3] = NAN;
      w[2 * 37 + 36] = -INFINITY;
      const test::PackedMatrix panels(stored_as(w, dtype), dtype, 6, k);
      for (const size_t tokens : {1, 2, 20}) {
        CAPTURE(tokens);
        std::vector<float> x(tokens * 37, 1.0F);
        std::vector<float> y(tokens * 6);
        std::vector<float> scratch(x.size());
        kernels::cpu::linear(isa, y.data(), x.data(), panels, nullptr, static_cast<int64_t>(tokens),
                             6, scratch.data(), pool);
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

}  // namespace llmctl
