#include "kernels/activation.h"

#include <bit>

#include "kernels/cpu/dispatch.h"
#include "tests/kernels/kernel_test.h"

namespace llmctl {
namespace {

using kernels::ActivationOp;
using kernels::Isa;
using test::kActivationTolerance;
using test::random_floats;
using test::same_bytes;
using test::worst_error;

constexpr ActivationOp kOps[] = {ActivationOp::kRelu, ActivationOp::kGelu, ActivationOp::kGeluTanh,
                                 ActivationOp::kSilu, ActivationOp::kQuickGelu};

/// A dense sweep of [-100, 100], every exponent, both zeros and the specials.
std::vector<float> telling_inputs() {
  std::vector<float> values{0.0F, -0.0F, INFINITY, NAN, 1e-45F, -1e-45F, 3e38F, 88.7F, -88.7F};
  for (int i = -20000; i <= 20000; ++i) values.push_back(static_cast<float>(i) * 0.005F);
  for (uint64_t bits = 0; bits < 0x1'0000'0000; bits += 0x1'0001 * 3) {
    const auto value = std::bit_cast<float>(static_cast<uint32_t>(bits));
    if (std::isfinite(value) && std::fabs(value) < 100.0F) values.push_back(value);
  }
  return values;
}

}  // namespace

TEST_CASE("activation: knows published values") {
  // From torch.nn.functional at x = 1 and x = -2, float64.
  struct Known {
    ActivationOp op;
    float at_one, at_minus_two;
  };
  for (const Known& known :
       {Known{ActivationOp::kRelu, 1.0F, 0.0F},
        Known{ActivationOp::kGelu, 0.8413447460685429F, -0.04550026389635842F},
        Known{ActivationOp::kGeluTanh, 0.8411919906082768F, -0.04540230591222494F},
        Known{ActivationOp::kSilu, 0.7310585786300049F, -0.23840584404423515F},
        Known{ActivationOp::kQuickGelu, 0.8457957659328212F, -0.06434137685579186F}}) {
    std::vector<float> x{1.0F, -2.0F};
    kernels::reference::activation(x.data(), 2, known.op);
    CHECK(x[0] == doctest::Approx(known.at_one).epsilon(1e-6));
    CHECK(x[1] == doctest::Approx(known.at_minus_two).epsilon(1e-6));
  }
}

TEST_CASE("activation: equals the F64 reference over the whole range on every ISA") {
  ThreadPool pool(2);
  const std::vector<float> x = telling_inputs();
  for (const ActivationOp op : kOps) {
    std::vector<float> want = x;
    kernels::reference::activation(want.data(), static_cast<int64_t>(want.size()), op);
    for (const Isa isa : kernels::available_isas()) {
      CAPTURE(static_cast<int>(op));
      CAPTURE(kernels::isa_name(isa));
      std::vector<float> got = x;
      kernels::cpu::activation(isa, got.data(), static_cast<int64_t>(got.size()), op, pool);
      for (size_t i = 0; i < x.size(); ++i) {
        CAPTURE(x[i]);
        CAPTURE(got[i]);
        CAPTURE(want[i]);
        REQUIRE(worst_error({&got[i], 1}, {&want[i], 1}, kActivationTolerance, 1.0) <= 1.0);
      }
    }
  }
}

TEST_CASE("activation: an element's result has the same bits wherever it stands") {
  ThreadPool pool(3);
  const std::vector<float> x = random_floats(40000, 1, 4.0F);
  for (const ActivationOp op : kOps) {
    for (const Isa isa : kernels::available_isas()) {
      std::vector<float> whole = x;
      kernels::cpu::activation(isa, whole.data(), 40000, op, pool);
      for (const size_t offset : {size_t{1}, size_t{5}, size_t{16385}}) {
        std::vector<float> part(x.begin() + static_cast<int64_t>(offset), x.end());
        kernels::cpu::activation(isa, part.data(), static_cast<int64_t>(part.size()), op, pool);
        CHECK(std::memcmp(part.data(), whole.data() + offset, part.size() * sizeof(float)) == 0);
      }
    }
  }
}

TEST_CASE("gated_activation: equals the F64 reference for odd widths on every ISA") {
  ThreadPool pool(2);
  for (const int64_t n : {1, 3, 16, 37, 1000}) {
    const std::vector<float> gate_up = random_floats(static_cast<size_t>(7 * 2 * n), 2, 3.0F);
    for (const ActivationOp op : kOps) {
      std::vector<float> want(static_cast<size_t>(7 * n));
      kernels::reference::gated_activation(want.data(), gate_up.data(), 7, n, op);
      for (const Isa isa : kernels::available_isas()) {
        CAPTURE(n);
        CAPTURE(static_cast<int>(op));
        CAPTURE(kernels::isa_name(isa));
        std::vector<float> got(want.size());
        kernels::cpu::gated_activation(isa, got.data(), gate_up.data(), 7, n, op, pool);
        // The gate's error times an `up` of up to about 10.
        CHECK(worst_error(got, want, kActivationTolerance, 10.0) <= 1.0);
      }
    }
  }
}

TEST_CASE("add: sums element by element over any count") {
  ThreadPool pool(2);
  for (const size_t count : {size_t{0}, size_t{1}, size_t{33}, size_t{16384}, size_t{50001}}) {
    std::vector<float> x = random_floats(count, 3);
    const std::vector<float> y = random_floats(count, 4);
    std::vector<float> want(count);
    for (size_t i = 0; i < count; ++i) want[i] = x[i] + y[i];
    kernels::add(x.data(), y.data(), static_cast<int64_t>(count), pool);
    CHECK(same_bytes(x, want));
  }
}

}  // namespace llmctl
