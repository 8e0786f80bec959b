// The tensor cores' operations, with the fragment layouts of the PTX manual, "Matrix multiply-
// accumulate instructions": m16n8k16, ldmatrix and movmatrix.
#include <bit>
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

/// Without branches, so that the compiler makes vectors of it.
template <bool kBfloat16>
float value_of(uint16_t bits) {
  if constexpr (kBfloat16) return bfloat16_value(bits);
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000U) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7fffU) << 13;
  const uint32_t scaled = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112F);
  const uint32_t special = (bits & 0x7c00U) == 0x7c00U ? 0x7f800000U : 0U;
  return std::bit_cast<float>(sign | scaled | special);
}

/// Replaces each lane's fragments of A and B by its four elements of A B.
template <bool kBfloat16>
void multiply(WarpSlots& slots) {
  uint16_t a_bits[16][16], b_bits[16][8];
  uint32_t any_a = 0, any_b = 0;
  bool finite = true;
  constexpr uint32_t kExponent = kBfloat16 ? 0x7f80U : 0x7c00U;
  for (int lane = 0; lane < 32; ++lane) {
    const auto f = slots.get<Fragments>(lane);
    const int g = lane / 4, t = lane % 4;
    for (const uint32_t word : f.a) any_a |= word;
    for (const uint32_t word : f.b) any_b |= word;
    for (const uint32_t word : {f.a[0], f.a[1], f.a[2], f.a[3], f.b[0], f.b[1]}) {
      finite &= (word & kExponent) != kExponent && (word >> 16 & kExponent) != kExponent;
    }
    for (int i = 0; i < 2; ++i) {
      a_bits[g][2 * t + i] = half_of(f.a[0], i);
      a_bits[g + 8][2 * t + i] = half_of(f.a[1], i);
      a_bits[g][2 * t + 8 + i] = half_of(f.a[2], i);
      a_bits[g + 8][2 * t + 8 + i] = half_of(f.a[3], i);
      b_bits[2 * t + i][g] = half_of(f.b[0], i);
      b_bits[2 * t + 8 + i][g] = half_of(f.b[1], i);
    }
  }
  float c[16][8] = {};
  // Small models leave most of a warp's part of K empty.
  if (!finite || ((any_a & 0x7fff7fffU) != 0 && (any_b & 0x7fff7fffU) != 0)) {
    float a[16][16], b[16][8];
    for (int i = 0; i < 256; ++i) a[i / 16][i % 16] = value_of<kBfloat16>(a_bits[i / 16][i % 16]);
    for (int i = 0; i < 128; ++i) b[i / 8][i % 8] = value_of<kBfloat16>(b_bits[i / 8][i % 8]);
    for (int row = 0; row < 16; ++row) {
      for (int k = 0; k < 16; ++k) {
        for (int column = 0; column < 8; ++column) c[row][column] += a[row][k] * b[k][column];
      }
    }
  }
  struct Sums {
    float c[4];
  };
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    slots.set(lane, Sums{{c[g][2 * t], c[g][2 * t + 1], c[g + 8][2 * t], c[g + 8][2 * t + 1]}});
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
