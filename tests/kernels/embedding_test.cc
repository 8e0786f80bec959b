#include "kernels/embedding.h"

#include "kernels/cpu/dispatch.h"
#include "tests/kernels/kernel_test.h"

namespace llmctl {

TEST_CASE("embedding: looks rows up in every dtype and gives zeros outside the local rows") {
  ThreadPool pool(2);
  const int64_t width = 37;
  const std::vector<float> rows = test::random_floats(18 * 37, 1);
  const std::vector<int32_t> ids{7, 3, 20, 2, 21, 3, 0};
  for (const DType dtype : {DType::F32, DType::F16, DType::BF16}) {
    const test::PackedMatrix table(test::stored_as(rows, dtype), dtype, 18, width);
    for (const kernels::Isa isa : kernels::available_isas()) {
      CAPTURE(dtype_name(dtype));
      CAPTURE(kernels::isa_name(isa));
      std::vector<float> y(ids.size() * 37, -1.0F);
      // This rank holds rows 3 .. 20.
      kernels::cpu::embedding(isa, y.data(), table, ids.data(), 3, static_cast<int64_t>(ids.size()),
                              pool);
      for (size_t t = 0; t < ids.size(); ++t) {
        for (size_t i = 0; i < 37; ++i) {
          float want = 0.0F;
          if (ids[t] >= 3 && ids[t] < 21) {
            const float value = rows[static_cast<size_t>(ids[t] - 3) * 37 + i];
            want = dtype == DType::F32 ? value
                   : dtype == DType::F16
                       ? kernels::half_to_float(kernels::float_to_half(value))
                       : kernels::bfloat16_to_float(kernels::float_to_bfloat16(value));
          }
          CHECK(y[t * 37 + i] == want);
        }
      }
    }
  }
}

}  // namespace llmctl
