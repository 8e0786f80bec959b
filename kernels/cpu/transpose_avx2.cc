// Transposes in tiles of 64 bytes of source rows by 32 bytes of columns, any element width but 1.
// Bound: bytes.
//
// A tile is four groups of g = 16 / width rows. Interleaving the rows of a group with those half a
// group away, log2(g) times, transposes each 128-bit lane; the lanes of the groups, side by side,
// are whole 64-byte lines of the target. Edges are left to the scalar loop.
#include <immintrin.h>

#include "kernels/cpu/transpose.h"

namespace llmctl::kernels::cpu {
namespace {

template <int kWidth>
struct Lanes;

template <>
struct Lanes<2> {
  static __m256i low(__m256i a, __m256i b) { return _mm256_unpacklo_epi16(a, b); }
  static __m256i high(__m256i a, __m256i b) { return _mm256_unpackhi_epi16(a, b); }
};
template <>
struct Lanes<4> {
  static __m256i low(__m256i a, __m256i b) { return _mm256_unpacklo_epi32(a, b); }
  static __m256i high(__m256i a, __m256i b) { return _mm256_unpackhi_epi32(a, b); }
};
template <>
struct Lanes<8> {
  static __m256i low(__m256i a, __m256i b) { return _mm256_unpacklo_epi64(a, b); }
  static __m256i high(__m256i a, __m256i b) { return _mm256_unpackhi_epi64(a, b); }
};

template <bool kStream>
inline void store(char* p, __m256i v) {
  if (kStream) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), v);
  } else {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
  }
}

/// 64 / kWidth rows by 32 / kWidth columns.
template <int kWidth, bool kStream>
inline void tile(char* dst, int64_t dst_pitch, const char* src, int64_t src_pitch) {
  constexpr int kGroup = 16 / kWidth;
  __m256i groups[4][kGroup];
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    __m256i row[kGroup];
#pragma GCC unroll 8
    for (int i = 0; i < kGroup; ++i) {
      row[i] =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src + (q * kGroup + i) * src_pitch));
    }
#pragma GCC unroll 3
    for (int stage = 1; stage < kGroup; stage *= 2) {
      __m256i mixed[kGroup];
#pragma GCC unroll 4
      for (int i = 0; i < kGroup / 2; ++i) {
        mixed[2 * i] = Lanes<kWidth>::low(row[i], row[i + kGroup / 2]);
        mixed[2 * i + 1] = Lanes<kWidth>::high(row[i], row[i + kGroup / 2]);
      }
#pragma GCC unroll 8
      for (int i = 0; i < kGroup; ++i) row[i] = mixed[i];
    }
#pragma GCC unroll 8
    for (int i = 0; i < kGroup; ++i) groups[q][i] = row[i];
  }
#pragma GCC unroll 8
  for (int i = 0; i < kGroup; ++i) {
    char* low = dst + i * dst_pitch;
    char* high = dst + (kGroup + i) * dst_pitch;
    store<kStream>(low, _mm256_permute2x128_si256(groups[0][i], groups[1][i], 0x20));
    store<kStream>(low + 32, _mm256_permute2x128_si256(groups[2][i], groups[3][i], 0x20));
    store<kStream>(high, _mm256_permute2x128_si256(groups[0][i], groups[1][i], 0x31));
    store<kStream>(high + 32, _mm256_permute2x128_si256(groups[2][i], groups[3][i], 0x31));
  }
}

template <int kWidth>
void transpose(char* dst, int64_t dst_pitch, const char* src, int64_t src_pitch, int64_t rows,
               int64_t cols, bool streaming) {
  constexpr int64_t kTileRows = 64 / kWidth;
  constexpr int64_t kTileCols = 32 / kWidth;
  // The side of a block of tiles: its source and target pages stay in the TLB.
  constexpr int64_t kBlock = 512;
  const Transpose scalar = generic_transpose(kWidth);
  int64_t head = 0;
  if (streaming) {
    // Streaming stores want whole aligned lines: the first rows bring the target up to one.
    const auto misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(dst) % 64);
    streaming = dst_pitch % 64 == 0 && misaligned % kWidth == 0;
    if (streaming && misaligned != 0) head = (64 - misaligned) / kWidth;
    if (head > rows) head = rows;
  }
  if (head > 0) scalar(dst, dst_pitch, src, src_pitch, head, cols, false);
  const int64_t full_rows = head + (rows - head) / kTileRows * kTileRows;
  const int64_t full_cols = cols / kTileCols * kTileCols;
  for (int64_t r0 = head; r0 < full_rows; r0 += kBlock) {
    const int64_t r1 = full_rows - r0 < kBlock ? full_rows : r0 + kBlock;
    for (int64_t c0 = 0; c0 < full_cols; c0 += kBlock) {
      const int64_t c1 = full_cols - c0 < kBlock ? full_cols : c0 + kBlock;
      for (int64_t r = r0; r < r1; r += kTileRows) {
        for (int64_t c = c0; c < c1; c += kTileCols) {
          char* out = dst + c * dst_pitch + r * kWidth;
          const char* in = src + r * src_pitch + c * kWidth;
          if (streaming) {
            tile<kWidth, true>(out, dst_pitch, in, src_pitch);
          } else {
            tile<kWidth, false>(out, dst_pitch, in, src_pitch);
          }
        }
      }
    }
  }
  scalar(dst + full_cols * dst_pitch + head * kWidth, dst_pitch,
         src + head * src_pitch + full_cols * kWidth, src_pitch, full_rows - head, cols - full_cols,
         false);
  scalar(dst + full_rows * kWidth, dst_pitch, src + full_rows * src_pitch, src_pitch,
         rows - full_rows, cols, false);
}

}  // namespace

Transpose avx2_transpose(int64_t width) {
  switch (width) {
    case 2:
      return transpose<2>;
    case 4:
      return transpose<4>;
    case 8:
      return transpose<8>;
    default:
      return nullptr;
  }
}

}  // namespace llmctl::kernels::cpu
