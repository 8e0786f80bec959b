#include "tests/gpu/checker.h"

#include <algorithm>

namespace llmctl::gpu {

void Checker::run(const std::string& name, DType dtype, const std::vector<float>& want,
                  double bound, const std::function<void(void*)>& launch,
                  const std::vector<float>* initial) const {
  constexpr size_t kGuard = 256;
  const size_t bytes = want.size() * dtype_bytes(dtype);
  const Buffer out(bytes + 2 * kGuard);
  std::vector<uint8_t> first;
  for (int i = 0; i < 2; ++i) {
    out.poison(stream.handle);
    char* const data = out.as<char>() + kGuard;
    if (initial != nullptr) {
      LLMCTL_CUDA_CHECK(
          cudaMemcpyAsync(data, initial->data(), bytes, cudaMemcpyHostToDevice, stream.handle));
    }
    launch(data);
    std::vector<uint8_t> all = out.download(stream.handle);
    if (i == 0) {
      first = std::move(all);
    } else if (all != first) {
      report.check_true(name + ": same bits twice", false);
    }
  }
  const auto poisoned = [](uint8_t b) { return b == 0xff; };
  if (!std::all_of(first.begin(), first.begin() + kGuard, poisoned) ||
      !std::all_of(first.end() - kGuard, first.end(), poisoned)) {
    report.check_true(name + ": writes only its result", false);
  }
  const std::vector<uint8_t> middle(first.begin() + kGuard, first.end() - kGuard);
  report.check(name, relative_error(widen(middle, dtype), want), bound);
}

}  // namespace llmctl::gpu
