// What computes a model: the processor or GPUs.
#pragma once

namespace llmctl::runtime {

enum class Device { kCpu, kCuda };

}  // namespace llmctl::runtime
