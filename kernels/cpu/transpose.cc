#include "kernels/cpu/transpose.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace llmctl::kernels::cpu {
namespace {

template <typename T>
void transpose(char* dst, int64_t dst_pitch, const char* src, int64_t src_pitch, int64_t rows,
               int64_t cols, bool /*streaming*/) {
  // Tiles whose source and destination lines stay in L1 while they are used.
  constexpr int64_t kTile = std::max<int64_t>(16, 64 / static_cast<int64_t>(sizeof(T)));
  constexpr auto kWidth = static_cast<int64_t>(sizeof(T));
  for (int64_t r0 = 0; r0 < rows; r0 += kTile) {
    const int64_t r1 = std::min(rows, r0 + kTile);
    for (int64_t c0 = 0; c0 < cols; c0 += kTile) {
      const int64_t c1 = std::min(cols, c0 + kTile);
      for (int64_t c = c0; c < c1; ++c) {
        char* out = dst + c * dst_pitch + r0 * kWidth;
        const char* in = src + r0 * src_pitch + c * kWidth;
        for (int64_t r = r0; r < r1; ++r, out += kWidth, in += src_pitch) {
          std::memcpy(out, in, sizeof(T));
        }
      }
    }
  }
}

}  // namespace

void finish_streaming() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

Transpose generic_transpose(int64_t width) {
  switch (width) {
    case 1:
      return transpose<uint8_t>;
    case 2:
      return transpose<uint16_t>;
    case 4:
      return transpose<uint32_t>;
    default:
      return transpose<uint64_t>;
  }
}

Transpose find_transpose(Isa isa, int64_t width) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return avx512_transpose(width);
  if (isa == Isa::kAvx2) {
    if (const Transpose found = avx2_transpose(width)) return found;
  }
#endif
  static_cast<void>(isa);
  return generic_transpose(width);
}

}  // namespace llmctl::kernels::cpu
