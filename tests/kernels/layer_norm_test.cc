#include "kernels/layer_norm.h"

#include "kernels/cpu/dispatch.h"
#include "tests/kernels/kernel_test.h"

namespace llmctl {
namespace {

using kernels::Isa;
using test::kNormTolerance;
using test::random_floats;
using test::same_bytes;
using test::worst_error;

constexpr int64_t kSizes[] = {1, 2, 3, 7, 8, 15, 16, 17, 31, 64, 71, 100, 513, 4097};

}  // namespace

TEST_CASE("layer_norm: equals the F64 reference with and without weight and bias on every ISA") {
  ThreadPool pool(2);
  for (const int64_t hidden : kSizes) {
    const auto count = static_cast<size_t>(5 * hidden);
    std::vector<float> x = random_floats(count, 1, 3.0F);
    // A mean far from zero is where a one-pass variance would lose its digits.
    for (float& value : x) value += 100.0F;
    const std::vector<float> weight = random_floats(static_cast<size_t>(hidden), 2);
    const std::vector<float> bias = random_floats(static_cast<size_t>(hidden), 3);
    for (const bool affine : {false, true}) {
      const float* w = affine ? weight.data() : nullptr;
      const float* b = affine ? bias.data() : nullptr;
      std::vector<float> want(count);
      kernels::reference::layer_norm(want.data(), x.data(), w, b, 5, hidden, 1e-5F);
      for (const Isa isa : kernels::available_isas()) {
        CAPTURE(kernels::isa_name(isa));
        CAPTURE(hidden);
        std::vector<float> got(count);
        kernels::cpu::layer_norm(isa, got.data(), x.data(), w, b, 5, hidden, 1e-5F, pool);
        // The mean, about 100, is rounded to F32: 4e-6 of error in x - mean of about 3.
        CHECK(worst_error(got, want, kNormTolerance, 10.0) <= 1.0);
      }
    }
  }
}

TEST_CASE("rms_norm: equals the F64 reference with and without weight on every ISA") {
  ThreadPool pool(2);
  for (const int64_t hidden : kSizes) {
    const auto count = static_cast<size_t>(3 * hidden);
    const std::vector<float> x = random_floats(count, 4, 20.0F);
    const std::vector<float> weight = random_floats(static_cast<size_t>(hidden), 5);
    for (const float* w : {static_cast<const float*>(nullptr), weight.data()}) {
      std::vector<float> want(count);
      kernels::reference::rms_norm(want.data(), x.data(), w, 3, hidden, 1e-6F);
      for (const Isa isa : kernels::available_isas()) {
        CAPTURE(kernels::isa_name(isa));
        CAPTURE(hidden);
        std::vector<float> got(count);
        kernels::cpu::rms_norm(isa, got.data(), x.data(), w, 3, hidden, 1e-6F, pool);
        CHECK(worst_error(got, want, kNormTolerance, 0.0) <= 1.0);
      }
    }
  }
}

TEST_CASE("layer_norm: a token's result has the same bits whatever tokens and threads share it") {
  ThreadPool one(1);
  ThreadPool three(3);
  const int64_t hidden = 203;
  const std::vector<float> x = random_floats(300 * 203, 6);
  const std::vector<float> weight = random_floats(203, 7);
  for (const Isa isa : kernels::available_isas()) {
    CAPTURE(kernels::isa_name(isa));
    std::vector<float> whole(x.size());
    std::vector<float> single(x.size());
    kernels::cpu::layer_norm(isa, whole.data(), x.data(), weight.data(), weight.data(), 300, hidden,
                             1e-5F, three);
    for (int64_t t = 0; t < 300; ++t) {
      kernels::cpu::layer_norm(isa, single.data() + t * hidden, x.data() + t * hidden,
                               weight.data(), weight.data(), 1, hidden, 1e-5F, one);
    }
    CHECK(same_bytes(whole, single));
    kernels::cpu::rms_norm(isa, whole.data(), x.data(), weight.data(), 300, hidden, 1e-5F, three);
    for (int64_t t = 0; t < 300; ++t) {
      kernels::cpu::rms_norm(isa, single.data() + t * hidden, x.data() + t * hidden, weight.data(),
                             1, hidden, 1e-5F, one);
    }
    CHECK(same_bytes(whole, single));
  }
}

TEST_CASE("layer_norm: works in place and keeps huge and tiny rows finite") {
  ThreadPool pool(1);
  for (const Isa isa : kernels::available_isas()) {
    CAPTURE(kernels::isa_name(isa));
    // Squares of these overflow and vanish in F32.
    for (const float scale : {1e30F, 1e-30F}) {
      std::vector<float> x = random_floats(37, 8, scale);
      std::vector<float> want(37);
      kernels::reference::rms_norm(want.data(), x.data(), nullptr, 1, 37, 0.0F);
      kernels::cpu::rms_norm(isa, x.data(), x.data(), nullptr, 1, 37, 0.0F, pool);
      CHECK(worst_error(x, want, kNormTolerance, 0.0) <= 1.0);
    }
    std::vector<float> constant(37, 5.0F);
    kernels::cpu::layer_norm(isa, constant.data(), constant.data(), nullptr, nullptr, 1, 37, 1e-5F,
                             pool);
    CHECK(constant == std::vector<float>(37, 0.0F));
    std::vector<float> bad(37, 1.0F);
    bad[36] = NAN;
    kernels::cpu::rms_norm(isa, bad.data(), bad.data(), nullptr, 1, 37, 1e-5F, pool);
    CHECK(std::isnan(bad[0]));
  }
}

}  // namespace llmctl
