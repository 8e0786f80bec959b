#include "kernels/rotary.h"

#include "tests/kernels/kernel_test.h"

namespace llmctl {

using test::random_floats;
using test::same_bytes;
using test::worst_error;

TEST_CASE("rotary: turns pairs by hand-worked quarter turns") {
  ThreadPool pool(1);
  const std::vector<float> cos{0.0F, 1.0F};
  const std::vector<float> sin{1.0F, 0.0F};
  // Halves: (1, 3) turns into (-3, 1), (2, 4) stays; the fifth dim is not rotated.
  std::vector<float> halves{1, 2, 3, 4, 5};
  kernels::rotary(halves.data(), cos.data(), sin.data(), 1, 1, 5, 4, false, 5, pool);
  CHECK(halves == std::vector<float>{-3, 2, 1, 4, 5});
  std::vector<float> pairs{1, 2, 3, 4, 5};
  kernels::rotary(pairs.data(), cos.data(), sin.data(), 1, 1, 5, 4, true, 5, pool);
  CHECK(pairs == std::vector<float>{-2, 1, 3, 4, 5});
}

TEST_CASE("rotary: equals the F64 reference over odd widths and strides for any threads") {
  ThreadPool one(1);
  ThreadPool three(3);
  for (const auto& [heads, head_dim, rotary_dim] :
       {std::array<int64_t, 3>{1, 2, 2}, {3, 5, 4}, {71, 64, 64}, {4, 80, 20}, {2, 7, 0}}) {
    for (const bool interleaved : {false, true}) {
      CAPTURE(head_dim);
      CAPTURE(rotary_dim);
      CAPTURE(interleaved);
      const int64_t tokens = 9;
      const int64_t stride = heads * head_dim + 3;
      const std::vector<float> x = random_floats(static_cast<size_t>(tokens * stride), 1);
      std::vector<float> cos(static_cast<size_t>(tokens * rotary_dim / 2));
      std::vector<float> sin(cos.size());
      for (size_t i = 0; i < cos.size(); ++i) {
        cos[i] = std::cos(static_cast<float>(i));
        sin[i] = std::sin(static_cast<float>(i));
      }
      std::vector<float> want = x;
      kernels::reference::rotary(want.data(), cos.data(), sin.data(), tokens, heads, head_dim,
                                 rotary_dim, interleaved, stride);
      std::vector<float> got = x;
      kernels::rotary(got.data(), cos.data(), sin.data(), tokens, heads, head_dim, rotary_dim,
                      interleaved, stride, three);
      CHECK(worst_error(got, want, test::kRotaryTolerance, 5.0) <= 1.0);
      std::vector<float> single = x;
      for (int64_t t = 0; t < tokens; ++t) {
        kernels::rotary(single.data() + t * stride, cos.data() + t * rotary_dim / 2,
                        sin.data() + t * rotary_dim / 2, 1, heads, head_dim, rotary_dim,
                        interleaved, stride, one);
      }
      CHECK(same_bytes(got, single));
    }
  }
}

}  // namespace llmctl
