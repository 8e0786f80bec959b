// Inside the kernels only: which function converts one contiguous run, per instruction set.
#pragma once

#include <cstdint>

#include "formats/core/dtype.h"
#include "kernels/isa.h"

namespace llmctl::kernels::cpu {

/// dst[i] = cast(src[i]) for i in [0, count); any alignment. With `clamp` a finite source that
/// does not fit becomes the largest finite value, else infinity. Returns how many did not fit.
using ConvertRun = uint64_t (*)(void* dst, const void* src, int64_t count, bool clamp);

/// The scalar function, or nullptr when no cast from `src` to `dst` exists. Not for src == dst.
ConvertRun generic_convert_run(DType src, DType dst);
/// nullptr: this instruction set has nothing better for the pair than the one before it.
ConvertRun avx2_convert_run(DType src, DType dst);
ConvertRun avx512_convert_run(DType src, DType dst);

/// The best function that `isa` has; nullptr as for generic_convert_run.
ConvertRun find_convert_run(Isa isa, DType src, DType dst);

}  // namespace llmctl::kernels::cpu
