// LaunchStream: where a kernel is launched, with the two facts about the device that every launcher
// needs.
#pragma once

#include <cuda_runtime_api.h>

namespace llmctl::kernels::cuda {

/// A stream (not owned), what launchers must know of its device, and how far kernels may run ahead
/// of their predecessor. A value; cheap to copy.
///
/// Every kernel of this folder waits for its predecessor before it touches an activation, and only
/// weights are fetched before that. Programmatic launch is therefore safe between any two of them.
/// Requires: whatever writes weights on the stream is separated from the first kernel by an event,
/// a synchronisation or a memory operation.
struct LaunchStream {
  cudaStream_t handle = nullptr;
  int num_sms = 0;
  int compute_major = 0;     ///< 9: programmatic launch
  bool programmatic = true;  ///< a kernel may start before its predecessor ends
};

/// For a non-blocking stream of the current device. Throws kEnvironment without a usable device,
/// kInternal for the default stream, which orders itself against every other stream.
LaunchStream make_launch_stream(cudaStream_t stream);

}  // namespace llmctl::kernels::cuda
