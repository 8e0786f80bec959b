// Transposes in tiles of one 64-byte line each way, any element width. Bound: bytes.
//
// A tile is four groups of g = 16 / width rows. Interleaving the rows of a group with those half a
// group away, log2(g) times, transposes each 128-bit lane; a 4 x 4 transpose of the lanes across
// the groups then yields whole lines of the target. Edges are the same tile under masks.
#include <immintrin.h>

#include "kernels/cpu/transpose.h"

namespace llmctl::kernels::cpu {
namespace {

template <int kWidth>
struct Lanes;

template <>
struct Lanes<1> {
  static __m512i low(__m512i a, __m512i b) { return _mm512_unpacklo_epi8(a, b); }
  static __m512i high(__m512i a, __m512i b) { return _mm512_unpackhi_epi8(a, b); }
};
template <>
struct Lanes<2> {
  static __m512i low(__m512i a, __m512i b) { return _mm512_unpacklo_epi16(a, b); }
  static __m512i high(__m512i a, __m512i b) { return _mm512_unpackhi_epi16(a, b); }
};
template <>
struct Lanes<4> {
  static __m512i low(__m512i a, __m512i b) { return _mm512_unpacklo_epi32(a, b); }
  static __m512i high(__m512i a, __m512i b) { return _mm512_unpackhi_epi32(a, b); }
};
template <>
struct Lanes<8> {
  static __m512i low(__m512i a, __m512i b) { return _mm512_unpacklo_epi64(a, b); }
  static __m512i high(__m512i a, __m512i b) { return _mm512_unpackhi_epi64(a, b); }
};

/// The first `bytes` of a line.
inline __mmask64 first_bytes(int64_t bytes) {
  return bytes >= 64 ? ~__mmask64{0} : (__mmask64{1} << bytes) - 1;
}

enum class Edge { kNone, kStream, kMasked };

/// One tile of num_rows x num_cols elements, both at most 64 / kWidth.
template <int kWidth, Edge kEdge>
inline void tile(char* dst, int64_t dst_pitch, const char* src, int64_t src_pitch, int64_t num_rows,
                 int64_t num_cols) {
  constexpr int kGroup = 16 / kWidth;
  __m512i groups[4][kGroup];
  const __mmask64 load_mask = first_bytes(num_cols * kWidth);
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    __m512i row[kGroup];
#pragma GCC unroll 16
    for (int i = 0; i < kGroup; ++i) {
      const int64_t r = q * kGroup + i;
      if constexpr (kEdge == Edge::kMasked) {
        row[i] = r < num_rows ? _mm512_maskz_loadu_epi8(load_mask, src + r * src_pitch)
                              : _mm512_setzero_si512();
      } else {
        row[i] = _mm512_loadu_si512(src + r * src_pitch);
      }
    }
#pragma GCC unroll 4
    for (int stage = 1; stage < kGroup; stage *= 2) {
      __m512i mixed[kGroup];
#pragma GCC unroll 8
      for (int i = 0; i < kGroup / 2; ++i) {
        mixed[2 * i] = Lanes<kWidth>::low(row[i], row[i + kGroup / 2]);
        mixed[2 * i + 1] = Lanes<kWidth>::high(row[i], row[i + kGroup / 2]);
      }
#pragma GCC unroll 16
      for (int i = 0; i < kGroup; ++i) row[i] = mixed[i];
    }
#pragma GCC unroll 16
    for (int i = 0; i < kGroup; ++i) groups[q][i] = row[i];
  }
  const __mmask64 store_mask = first_bytes(num_rows * kWidth);
#pragma GCC unroll 16
  for (int i = 0; i < kGroup; ++i) {
    const __m512i ab_low = _mm512_shuffle_i32x4(groups[0][i], groups[1][i], 0x44);
    const __m512i ab_high = _mm512_shuffle_i32x4(groups[0][i], groups[1][i], 0xEE);
    const __m512i cd_low = _mm512_shuffle_i32x4(groups[2][i], groups[3][i], 0x44);
    const __m512i cd_high = _mm512_shuffle_i32x4(groups[2][i], groups[3][i], 0xEE);
    const __m512i lines[4] = {
        _mm512_shuffle_i32x4(ab_low, cd_low, 0x88), _mm512_shuffle_i32x4(ab_low, cd_low, 0xDD),
        _mm512_shuffle_i32x4(ab_high, cd_high, 0x88), _mm512_shuffle_i32x4(ab_high, cd_high, 0xDD)};
#pragma GCC unroll 4
    for (int lane = 0; lane < 4; ++lane) {
      const int64_t c = lane * kGroup + i;
      char* out = dst + c * dst_pitch;
      if constexpr (kEdge == Edge::kMasked) {
        if (c < num_cols) _mm512_mask_storeu_epi8(out, store_mask, lines[lane]);
      } else if constexpr (kEdge == Edge::kStream) {
        _mm512_stream_si512(reinterpret_cast<__m512i*>(out), lines[lane]);
      } else {
        _mm512_storeu_si512(out, lines[lane]);
      }
    }
  }
}

template <int kWidth>
void transpose(char* dst, int64_t dst_pitch, const char* src, int64_t src_pitch, int64_t rows,
               int64_t cols, bool streaming) {
  constexpr int64_t kTile = 64 / kWidth;
  // The side of a block of tiles: its source and target pages stay in the TLB.
  constexpr int64_t kBlock = 512;
  int64_t head = 0;
  if (streaming) {
    // Streaming stores want whole aligned lines: the first rows bring the target up to one.
    const auto misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(dst) % 64);
    streaming = dst_pitch % 64 == 0 && misaligned % kWidth == 0;
    if (streaming && misaligned != 0) head = (64 - misaligned) / kWidth;
    if (head > rows) head = rows;
  }
  for (int64_t c = 0; c < cols && head > 0; c += kTile) {
    tile<kWidth, Edge::kMasked>(dst + c * dst_pitch, dst_pitch, src + c * kWidth, src_pitch, head,
                                cols - c < kTile ? cols - c : kTile);
  }
  for (int64_t r0 = head; r0 < rows; r0 += kBlock) {
    const int64_t r1 = rows - r0 < kBlock ? rows : r0 + kBlock;
    for (int64_t c0 = 0; c0 < cols; c0 += kBlock) {
      const int64_t c1 = cols - c0 < kBlock ? cols : c0 + kBlock;
      for (int64_t r = r0; r < r1; r += kTile) {
        const int64_t num_rows = r1 - r < kTile ? r1 - r : kTile;
        for (int64_t c = c0; c < c1; c += kTile) {
          const int64_t num_cols = c1 - c < kTile ? c1 - c : kTile;
          char* out = dst + c * dst_pitch + r * kWidth;
          const char* in = src + r * src_pitch + c * kWidth;
          if (num_rows < kTile || num_cols < kTile) {
            tile<kWidth, Edge::kMasked>(out, dst_pitch, in, src_pitch, num_rows, num_cols);
          } else if (streaming) {
            tile<kWidth, Edge::kStream>(out, dst_pitch, in, src_pitch, kTile, kTile);
          } else {
            tile<kWidth, Edge::kNone>(out, dst_pitch, in, src_pitch, kTile, kTile);
          }
        }
      }
    }
  }
}

}  // namespace

Transpose avx512_transpose(int64_t width) {
  switch (width) {
    case 1:
      return transpose<1>;
    case 2:
      return transpose<2>;
    case 4:
      return transpose<4>;
    default:
      return transpose<8>;
  }
}

}  // namespace llmctl::kernels::cpu
