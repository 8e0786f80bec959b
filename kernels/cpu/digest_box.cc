// The weighted sum of a box as nested sums: the axis that is contiguous in memory is the innermost
// and one run, every axis around it multiplies what is inside by its weights.
#include "kernels/digest_box.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/cpu/digest_runs.h"
#include "kernels/cpu/dispatch.h"

namespace llmctl::kernels {
namespace {

/// Contiguous axes are joined until a run is about this long: a sum has a price of its own.
constexpr int64_t kGoodRun = 64;
/// Weights of joined axes are kept in a table, which should stay in L1.
constexpr int64_t kLongestJoinedRun = 2048;

template <typename Element, typename Weight>
uint64_t plain_run(const void* data, const Weight* weights, int64_t count) {
  const char* p = static_cast<const char*>(data);
  uint64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    Element bits;
    std::memcpy(&bits, p + i * static_cast<int64_t>(sizeof bits), sizeof bits);
    sum += uint64_t{bits} * weights[i];
  }
  return sum;
}

template <typename Element>
cpu::DigestRuns plain_runs() {
  return {plain_run<Element, uint32_t>, plain_run<Element, uint64_t>};
}

cpu::DigestRuns find_runs(Isa isa, int64_t width) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) {
    if (const cpu::DigestRuns runs = cpu::avx512_digest_runs(width); runs.run != nullptr) {
      return runs;
    }
  }
  if (isa == Isa::kAvx512 || isa == Isa::kAvx2) {
    if (const cpu::DigestRuns runs = cpu::avx2_digest_runs(width); runs.run != nullptr) return runs;
  }
#else
  static_cast<void>(isa);
#endif
  return cpu::generic_digest_runs(width);
}

struct Axis {
  int64_t extent = 1, stride_bytes = 0;
  const uint32_t* weights = nullptr;
};

class BoxDigest {
 public:
  BoxDigest(Isa isa, int64_t width) : width_(width), runs_(find_runs(isa, width)) {}

  uint64_t sum(const void* data, const DigestBox& box) {
    uint64_t factor = 1;  // of axes of one index
    uint64_t ones = 1;    // the sum of the weights alone
    for (int a = 0; a < box.num_axes; ++a) {
      uint64_t total = 0;
      for (int64_t i = 0; i < box.extents[a]; ++i) total += box.weights[a][i];
      ones *= total;
      if (box.extents[a] == 0) return 0;
      if (box.extents[a] == 1) {
        factor *= box.weights[a][0];
      } else {
        axes_[num_axes_++] = {box.extents[a], box.strides[a] * width_, box.weights[a]};
      }
    }
    std::stable_sort(axes_, axes_ + num_axes_,
                     [](const Axis& a, const Axis& b) { return a.stride_bytes > b.stride_bytes; });
    join_inner_axes();
    return nested(static_cast<const char*>(data), 0) * factor + ones;
  }

 private:
  void join_inner_axes() {
    if (num_axes_ == 0 || axes_[num_axes_ - 1].stride_bytes != width_) return;
    run_ = axes_[--num_axes_].extent;
    run_weights_ = axes_[num_axes_].weights;
    const uint32_t* first = run_weights_;
    while (num_axes_ > 0 && run_ < kGoodRun) {
      const Axis& outer = axes_[num_axes_ - 1];
      if (outer.stride_bytes != run_ * width_ || outer.extent * run_ > kLongestJoinedRun) break;
      if (joined_.empty()) joined_.assign(first, first + run_);
      joined_.resize(static_cast<size_t>(outer.extent * run_));
      for (int64_t o = outer.extent; o-- > 0;) {
        for (int64_t i = 0; i < run_; ++i) {
          joined_[static_cast<size_t>(o * run_ + i)] =
              joined_[static_cast<size_t>(i)] * outer.weights[o];
        }
      }
      run_ *= outer.extent;
      --num_axes_;
    }
  }

  uint64_t nested(const char* data, int depth) const {
    if (depth == num_axes_) {
      if (!joined_.empty()) return runs_.wide(data, joined_.data(), run_);
      if (run_weights_ != nullptr) return runs_.run(data, run_weights_, run_);
      static constexpr uint32_t kOne = 1;
      return runs_.run(data, &kOne, 1);
    }
    const Axis& axis = axes_[depth];
    uint64_t sum = 0;
    for (int64_t i = 0; i < axis.extent; ++i) {
      sum += nested(data + i * axis.stride_bytes, depth + 1) * axis.weights[i];
    }
    return sum;
  }

  int64_t width_;
  cpu::DigestRuns runs_;
  Axis axes_[kMaxBoxAxes];
  int num_axes_ = 0;
  int64_t run_ = 1;
  const uint32_t* run_weights_ = nullptr;
  std::vector<uint64_t> joined_;
};

}  // namespace

cpu::DigestRuns cpu::generic_digest_runs(int64_t width) {
  switch (width) {
    case 1:
      return plain_runs<uint8_t>();
    case 2:
      return plain_runs<uint16_t>();
    case 4:
      return plain_runs<uint32_t>();
    default:
      return plain_runs<uint64_t>();
  }
}

uint64_t cpu::digest_box(Isa isa, const void* data, int64_t width, const DigestBox& box) {
  return BoxDigest(isa, width).sum(data, box);
}

uint64_t digest_box(const void* data, int64_t width, const DigestBox& box) {
  return cpu::digest_box(active_isa(), data, width, box);
}

uint32_t digest_weight(uint64_t axis_seed, int64_t index) {
  uint64_t z = axis_seed + (static_cast<uint64_t>(index) + 1) * 0x9E3779B97F4A7C15U;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
  return static_cast<uint32_t>((z ^ (z >> 31)) >> 32) | 1U;
}

}  // namespace llmctl::kernels
