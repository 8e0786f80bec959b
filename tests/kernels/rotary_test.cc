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

TEST_CASE("rotary: in BF16 each product and each sum is rounded once to even") {
  ThreadPool pool(2);
  // BF16 has 8 bits: 257 lies between 256 and 258 and goes to the even 256; 259 goes to 260.
  std::vector<float> x{257, 1, 259, 1};
  const std::vector<float> cos{1.0F, 1.0F};
  const std::vector<float> sin{0.0F, 0.0F};
  kernels::rotary_bf16(x.data(), cos.data(), sin.data(), 2, 1, 2, 2, false, 2, pool);
  CHECK(x == std::vector<float>{256, 1, 260, 1});
  // The products stay apart: 256 and 1.5 are exact, and only their sum is between 257 and 258.
  std::vector<float> sums{256, -1.5F};
  const std::vector<float> ones{1.0F};
  kernels::rotary_bf16(sums.data(), ones.data(), ones.data(), 1, 1, 2, 2, false, 2, pool);
  CHECK(sums == std::vector<float>{258, 254});

  for (const bool interleaved : {false, true}) {
    const int64_t tokens = 5, heads = 3, head_dim = 10, rotary_dim = 8, stride = 33;
    std::vector<float> got = random_floats(static_cast<size_t>(tokens * stride), 2);
    got[1] = std::numeric_limits<float>::quiet_NaN();
    got[2] = std::numeric_limits<float>::infinity();
    std::vector<float> want = got;
    const std::vector<float> c = random_floats(static_cast<size_t>(tokens * rotary_dim / 2), 3);
    const std::vector<float> s = random_floats(c.size(), 4);
    kernels::reference::rotary_bf16(want.data(), c.data(), s.data(), tokens, heads, head_dim,
                                    rotary_dim, interleaved, stride);
    kernels::rotary_bf16(got.data(), c.data(), s.data(), tokens, heads, head_dim, rotary_dim,
                         interleaved, stride, pool);
    for (size_t i = 0; i < got.size(); ++i) {
      CHECK((got[i] == want[i] || (std::isnan(got[i]) && std::isnan(want[i]))));
    }
  }
}

}  // namespace llmctl
