#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cuda/argmax.h"
#include "kernels/cuda/read_memory.h"
#include "tests/gpu/checker.h"

namespace llmctl::gpu {

namespace cuda = kernels::cuda;

void check_argmax(const Checker& c) {
  const cudaStream_t s = c.stream.handle;
  uint64_t seed = 50000;
  for (const DType dtype : {DType::F32, DType::F16, DType::BF16}) {
    for (const int64_t n : {int64_t{1}, int64_t{257}, int64_t{50257}}) {
      constexpr int64_t kRows = 5;
      const int64_t stride = n + 3;
      std::vector<float> values = random_values(kRows * stride, 1.0F, ++seed);
      values[0] = n == 1 ? -INFINITY : values[0];
      if (n > 1) {
        // Row 1: ties, row 2: NaN among numbers, row 3: only NaN, row 4: all negative or -inf.
        values[static_cast<size_t>(stride + n / 2)] = values[static_cast<size_t>(stride + n - 1)] =
            9.0F;
        for (int64_t i = 0; i < n; i += 2) values[static_cast<size_t>(2 * stride + i)] = NAN;
        for (int64_t i = 0; i < n; ++i) {
          values[static_cast<size_t>(3 * stride + i)] = NAN;
          float& v = values[static_cast<size_t>(4 * stride + i)];
          v = i % 3 == 0 ? -INFINITY : -std::fabs(v) - 1.0F;
        }
      }
      const Tensor logits = make_tensor(values, dtype, s);
      const Buffer scratch(cuda::argmax_scratch_bytes(kRows)), ids(kRows * 4);
      scratch.zero(s);
      bool right = true;
      for (int again = 0; again < 2; ++again) {
        ids.poison(s);
        cuda::argmax(ids.as<int32_t>(), logits.data(), dtype, kRows, n, stride, scratch.data(),
                     c.stream);
        const std::vector<uint8_t> raw = ids.download(s);
        for (int64_t r = 0; r < kRows; ++r) {
          int32_t want = -1, got = 0;
          for (int64_t i = 0; i < n; ++i) {
            const float v = logits.values[static_cast<size_t>(r * stride + i)];
            if (std::isnan(v)) continue;
            if (want < 0 || v > logits.values[static_cast<size_t>(r * stride + want)]) {
              want = static_cast<int32_t>(i);
            }
          }
          std::memcpy(&got, raw.data() + 4 * r, 4);
          right = right && got == want;
        }
      }
      c.report.check_true("argmax " + dtype_word(dtype) + " n " + std::to_string(n), right);
    }
  }

  for (const size_t bytes : {size_t{16}, size_t{16} * 1001, size_t{1} << 20}) {
    const std::vector<float> values = random_values(static_cast<int64_t>(bytes / 4), 1.0F, 99);
    const Tensor data = make_tensor(values, DType::F32, s);
    const Buffer sums(cuda::kReadSums * 4);
    sums.poison(s);
    cuda::read_memory(sums.as<uint32_t>(), data.data(), bytes, c.stream);
    const auto all_words = [](const std::vector<uint8_t>& raw) {
      uint32_t sum = 0, word = 0;
      for (size_t i = 0; i < raw.size(); i += 4) {
        std::memcpy(&word, raw.data() + i, 4);
        sum ^= word;
      }
      return sum;
    };
    c.report.check_true("read_memory reads every word of " + std::to_string(bytes) + " bytes once",
                        all_words(sums.download(s)) == all_words(data.raw));
  }
}

}  // namespace llmctl::gpu
