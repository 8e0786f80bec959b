// A digest of a strided box that no layout changes: the sum of its elements, each weighted by its
// place.
#pragma once

#include <cstdint>

#include "kernels/copy_box.h"

namespace llmctl::kernels {

/// A box of up to 8 axes in a strided array, with the weights of its indices. `strides` are in
/// elements, not negative, in any order; `weights[a]` has one weight per index of axis a, all of
/// them odd.
struct DigestBox {
  int num_axes = 0;
  int64_t extents[kMaxBoxAxes] = {};
  int64_t strides[kMaxBoxAxes] = {};
  const uint32_t* weights[kMaxBoxAxes] = {};
};

/// The weight of one index of an axis: odd, and scattered by splitmix64, so that no two axes of
/// different seeds agree.
uint32_t digest_weight(uint64_t axis_seed, int64_t index);

/// The sum modulo 2^64, over the indices i of the box, of (bits(data[i . strides]) + 1) times the
/// product over the axes a of weights[a][i_a]; `bits` is the element as an unsigned number of
/// `width` bytes (1, 2, 4 or 8). Disjoint parts of a tensor add up to the digest of the whole, in
/// whatever order and layout they lie. As every weight is odd, no change of a single element is
/// missed, and as one is added to the bits, no missing or doubled one, zero or not. `data` points
/// at index 0; any alignment. No extent is negative; an extent of 0 gives 0. Bound: bytes. The
/// same number on every ISA.
uint64_t digest_box(const void* data, int64_t width, const DigestBox& box);

/// The plain loop that `digest_box` is held to.
uint64_t digest_box_reference(const void* data, int64_t width, const DigestBox& box);

}  // namespace llmctl::kernels
