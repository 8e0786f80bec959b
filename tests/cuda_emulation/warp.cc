// The tensor cores' operations, with the fragment layouts of the PTX manual, "Matrix multiply-
// accumulate instructions": m16n8k16, ldmatrix and movmatrix.
#include <cstring>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace llmctl::cuda_emulation {
namespace {

constexpr unsigned kAll = 0xffffffffU;

struct Fragments {
  uint32_t a[4], b[2];
};

uint16_t half_of(uint32_t pair, int i) { return static_cast<uint16_t>(pair >> (16 * i)); }

template <bool kBfloat16>
float value_of(uint16_t bits) {
  return kBfloat16 ? bfloat16_value(bits) : half_value(bits);
}

/// Replaces each lane's fragments of A and B by its four elements of A B.
template <bool kBfloat16>
void multiply(WarpSlots& slots) {
  float a[16][16], b[8][16];
  for (int lane = 0; lane < 32; ++lane) {
    const auto f = slots.get<Fragments>(lane);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 2; ++i) {
      a[g][2 * t + i] = value_of<kBfloat16>(half_of(f.a[0], i));
      a[g + 8][2 * t + i] = value_of<kBfloat16>(half_of(f.a[1], i));
      a[g][2 * t + 8 + i] = value_of<kBfloat16>(half_of(f.a[2], i));
      a[g + 8][2 * t + 8 + i] = value_of<kBfloat16>(half_of(f.a[3], i));
      b[g][2 * t + i] = value_of<kBfloat16>(half_of(f.b[0], i));
      b[g][2 * t + 8 + i] = value_of<kBfloat16>(half_of(f.b[1], i));
    }
  }
  struct Sums {
    float c[4];
  };
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    Sums sums{};
    for (int i = 0; i < 4; ++i) {
      const float* const row = a[g + 8 * (i / 2)];
      const float* const column = b[2 * t + i % 2];
      for (int k = 0; k < 16; ++k) sums.c[i] += row[k] * column[k];
    }
    slots.set(lane, sums);
  }
}

}  // namespace

void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool is_bf16) {
  const Fragments mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const WarpSlots& slots = exchange(is_bf16 ? "mma bf16" : "mma f16", kAll, &mine, sizeof mine,
                                    is_bf16 ? multiply<true> : multiply<false>);
  float sums[4];
  std::memcpy(sums, slots.bytes[lane_id()], sizeof sums);
  for (int i = 0; i < 4; ++i) c[i] += sums[i];
}

uint32_t movmatrix_trans(uint32_t a) {
  const WarpSlots& slots = exchange("movmatrix", kAll, &a, sizeof a);
  const int g = lane_id() / 4, t = lane_id() % 4;
  const auto element = [&](int row, int column) {
    return static_cast<uint32_t>(half_of(slots.get<uint32_t>(row * 4 + column / 2), column % 2));
  };
  return element(2 * t, g) | (element(2 * t + 1, g) << 16);
}

void ldmatrix_x4(uint32_t (&d)[4], const void* row, bool transposed) {
  const WarpSlots& slots =
      exchange(transposed ? "ldmatrix trans" : "ldmatrix", kAll, &row, sizeof row);
  const int g = lane_id() / 4, t = lane_id() % 4;
  for (int matrix = 0; matrix < 4; ++matrix) {
    const auto element = [&](int r, int c) -> uint32_t {
      return static_cast<const uint16_t*>(slots.get<const void*>(8 * matrix + r))[c];
    };
    d[matrix] = transposed ? element(2 * t, g) | (element(2 * t + 1, g) << 16)
                           : element(g, 2 * t) | (element(g, 2 * t + 1) << 16);
  }
}

}  // namespace llmctl::cuda_emulation
