// Inside the kernels only: two-dimensional transposes of raw elements, per instruction set.
#pragma once

#include <cstdint>

#include "kernels/isa.h"

namespace llmctl::kernels::cpu {

/// dst[c][r] = src[r][c] for r in [0, rows), c in [0, cols). Row pitches are in bytes; elements of
/// one row are adjacent; any alignment. With `streaming`, whole aligned lines of `dst` may bypass
/// the cache: `finish_streaming` then makes them visible to other threads.
using Transpose = void (*)(char* dst, int64_t dst_pitch, const char* src, int64_t src_pitch,
                           int64_t rows, int64_t cols, bool streaming);

void finish_streaming();

/// For elements of 1, 2, 4 or 8 bytes.
Transpose generic_transpose(int64_t width);
/// nullptr: no vector code for this width.
Transpose avx2_transpose(int64_t width);
Transpose avx512_transpose(int64_t width);

/// The best function that `isa` has.
Transpose find_transpose(Isa isa, int64_t width);

}  // namespace llmctl::kernels::cpu
