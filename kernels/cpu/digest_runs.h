// Inside the kernels only: the weighted sum of one contiguous run, per instruction set.
#pragma once

#include <cstdint>

#include "kernels/isa.h"

namespace llmctl::kernels::cpu {

/// The sum modulo 2^64 of bits(data[i]) * weights[i] for i in [0, count); any alignment.
using DigestRun = uint64_t (*)(const void* data, const uint32_t* weights, int64_t count);
using WideDigestRun = uint64_t (*)(const void* data, const uint64_t* weights, int64_t count);

struct DigestRuns {
  DigestRun run = nullptr;
  WideDigestRun wide = nullptr;  ///< for weights that are products
};

/// `width`: bytes of an element, 1, 2, 4 or 8.
DigestRuns generic_digest_runs(int64_t width);
/// Null functions: this instruction set has nothing better for the width.
DigestRuns avx2_digest_runs(int64_t width);
DigestRuns avx512_digest_runs(int64_t width);

}  // namespace llmctl::kernels::cpu
