// The one inner loop of resharding: a strided box copied, with a cast on the way.
#pragma once

#include <cstdint>

#include "kernels/convert.h"

namespace llmctl::kernels {

constexpr int kMaxBoxAxes = 8;

/// A box of up to 8 axes in two strided arrays. Strides are in elements of the array's own dtype
/// and may be in any order; they must address distinct elements in `dst`.
struct Box {
  int num_axes = 0;
  int64_t extents[kMaxBoxAxes] = {};
  int64_t src_strides[kMaxBoxAxes] = {};
  int64_t dst_strides[kMaxBoxAxes] = {};
};

/// dst[i . dst_strides] = cast(src[i . src_strides]) for every index i in the box. `dst` and `src`
/// point at index 0; any alignment; no overlap. An extent of 0 copies nothing. Bound: bytes
/// (memcpy runs, blocked transposes, vectorised casts). Same bytes on every ISA.
/// Requires: can_convert(src_dtype, dst_dtype).
CastStats copy_box(void* dst, DType dst_dtype, const void* src, DType src_dtype, const Box& box,
                   Overflow overflow);

/// The plain loop that `copy_box` is held to.
CastStats copy_box_reference(void* dst, DType dst_dtype, const void* src, DType src_dtype,
                             const Box& box, Overflow overflow);

}  // namespace llmctl::kernels
