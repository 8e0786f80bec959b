#include "kernels/product.h"

#include "kernels/cpu/dispatch.h"
#include "tests/kernels/kernel_test.h"

namespace llmctl {

using test::random_floats;
using test::same_bytes;

TEST_CASE("product: has the bits of the plain F64 loop for every size on every ISA") {
  for (const auto& [rows, k, columns] : {std::array<int64_t, 3>{1, 1, 1},
                                         {6, 8, 16},
                                         {7, 5, 17},
                                         {13, 64, 33},
                                         {97, 16, 24},
                                         {3, 515, 66},
                                         {2, 0, 5}}) {
    CAPTURE(rows);
    CAPTURE(k);
    CAPTURE(columns);
    const auto left = random_floats(static_cast<size_t>(rows * k), 1);
    const auto right = random_floats(static_cast<size_t>(k * columns), 2);
    std::vector<float> want(static_cast<size_t>(rows * columns), -1.0F);
    kernels::reference::product(want.data(), left.data(), right.data(), rows, k, columns);
    for (const kernels::Isa isa : kernels::available_isas()) {
      CAPTURE(kernels::isa_name(isa));
      std::vector<float> got(want.size(), -2.0F);
      kernels::cpu::product(isa, got.data(), left.data(), right.data(), rows, k, columns);
      CHECK(same_bytes(got, want));
    }
  }
}

TEST_CASE("product: keeps what cancels and what leaves the range and has one NaN") {
  const float inf = std::numeric_limits<float>::infinity();
  const float tiny = std::numeric_limits<float>::denorm_min();
  // 3e38^2 is far past F32 and comes back; the smallest product is far below it.
  const std::vector<float> left = {3e38F, 3e38F, tiny, inf, -inf, 1, -std::nanf("7"), 0, 1};
  const std::vector<float> right = {3e38F, -3e38F, 1};
  std::vector<float> want(3);
  kernels::reference::product(want.data(), left.data(), right.data(), 3, 3, 1);
  CHECK(want[0] == tiny);
  for (const kernels::Isa isa : kernels::available_isas()) {
    CAPTURE(kernels::isa_name(isa));
    std::vector<float> got(3);
    kernels::cpu::product(isa, got.data(), left.data(), right.data(), 3, 3, 1);
    CHECK(same_bytes(got, want));
  }
}

}  // namespace llmctl
