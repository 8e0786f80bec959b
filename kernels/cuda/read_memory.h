// Reading memory and nothing else: what the bandwidth of a card is measured with.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/launch_stream.h"

namespace llmctl::kernels::cuda {

/// Entries of `sums`.
constexpr int64_t kReadSums = 2048;

/// sums[i] = exclusive or of the words that block i reads; together the blocks read every word
/// once. Requires: data 16-byte aligned, bytes a multiple of 16. Bound: bytes.
void read_memory(uint32_t* sums,  // (kReadSums), those beyond the grid become zero
                 const void* data, size_t bytes, const LaunchStream& stream);

}  // namespace llmctl::kernels::cuda
