// Whether the kernels of this build can run on a device.
#pragma once

namespace llmctl::kernels::cuda {

/// For the current device: false when it is older, or of another kind, than what nvcc was told to
/// build for (CMAKE_CUDA_ARCHITECTURES).
bool has_device_code();

}  // namespace llmctl::kernels::cuda
