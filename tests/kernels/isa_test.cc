#include "kernels/isa.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>

namespace llmctl {

TEST_CASE("isa: generic is always there and the active one is available") {
  const auto isas = kernels::available_isas();
  REQUIRE(!isas.empty());
  CHECK(isas.front() == kernels::Isa::kGeneric);
  CHECK(std::count(isas.begin(), isas.end(), kernels::active_isa()) == 1);
  const char* asked = std::getenv("LLMCTL_ISA");
  if (asked == nullptr) {
    CHECK(kernels::active_isa() == isas.back());
  } else {
    CHECK(kernels::isa_name(kernels::active_isa()) == asked);
  }
}

}  // namespace llmctl
