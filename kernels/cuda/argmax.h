// Greedy choice on the device: the index of the largest logit of each row.
#pragma once

#include <cstddef>
#include <cstdint>

#include "formats/core/dtype.h"
#include "kernels/cuda/launch_stream.h"

namespace llmctl::kernels::cuda {

/// Bytes of scratch for `argmax` of `num_rows` rows. Must be zero before the first call; each call
/// leaves it ready for the next on the same stream.
size_t argmax_scratch_bytes(int64_t num_rows);

/// ids[r] = index of the largest of logits[r], the lowest index among equals. NaN never wins; a row
/// of NaN gives -1. Bound: bytes of the logits.
void argmax(int32_t* ids,        // (num_rows)
            const void* logits,  // (num_rows, n), rows `stride` elements apart
            DType dtype, int64_t num_rows, int64_t n, int64_t stride, void* scratch,
            const LaunchStream& stream);

}  // namespace llmctl::kernels::cuda
