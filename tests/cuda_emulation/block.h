// Runs a kernel's blocks one after the other, the threads of a block as fibers.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>

#include <cuda_runtime.h>

namespace llmctl::cuda_emulation {

struct Launch {
  dim3 grid, block;
  size_t shared_bytes = 0;
  std::function<void()> body;
};

/// Runs every thread of every block to its end. Shared memory is full of NaN before each block.
/// `backwards`: blocks, warps and lanes take their turns in descending order, so that a kernel that
/// lacks a barrier gives other results. What is wrong, if a thread waits for something that cannot
/// happen or a warp's lanes disagree. Not thread-safe.
std::optional<std::string> run_launch(const Launch& launch, bool backwards);

}  // namespace llmctl::cuda_emulation
