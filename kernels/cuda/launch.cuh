// The one way kernels are launched: configuration, programmatic dependent launch, error check,
// NVTX.
#pragma once

#include <cuda_runtime.h>
#include <nvtx3/nvToolsExt.h>

#include "formats/core/error.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/launch_stream.h"

namespace llmctl::kernels::cuda {

/// Names the launcher in a profile for as long as it lives.
class ProfileRange {
 public:
  explicit ProfileRange(const char* name) { nvtxRangePushA(name); }
  ~ProfileRange() { nvtxRangePop(); }
  ProfileRange(const ProfileRange&) = delete;
  ProfileRange& operator=(const ProfileRange&) = delete;
};

/// Our own mistake, not the user's: a launcher called against its contract.
inline void require(bool condition, const char* op, const char* what) {
  if (!condition) throw Error(ErrorCode::kInternal, what, op);
}

inline bool is_aligned(const void* p, size_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

/// Shared memory per SM that every kernel asks for, unless one block needs more. One value for all:
/// an SM must drain before it changes the split, so a kernel that wants another cannot start beside
/// its predecessor. The rest is L1, which loads in flight need (H200: 228 KiB here costs attention
/// 15 %).
constexpr int kSharedKibPerSm = 132;

/// Once per function and device: the split above, and more than 48 KiB of dynamic shared memory.
template <typename Kernel>
void allow_shared_memory(Kernel kernel, size_t bytes) {
  const bool usual = bytes <= (kSharedKibPerSm - 4) * 1024;
  LLMCTL_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                         usual ? kSharedKibPerSm * 100 / 228 : 100));
  // Static shared memory counts against the same 48 KiB.
  if (bytes <= 40 * 1024) return;
  LLMCTL_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         static_cast<int>(bytes)));
}

/// Blocks such that all of them do the same number of groups, at most `resident` at a time.
inline unsigned balanced_grid(int64_t groups, int64_t resident) {
  const int64_t rounds = (groups + resident - 1) / resident;
  return static_cast<unsigned>((groups + rounds - 1) / rounds);
}

template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
            const LaunchStream& stream, Args... args) {
  allow_shared_memory(kernel, shared_bytes);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream.handle;
  config.attrs = &attribute;
  config.numAttrs = stream.programmatic ? 1 : 0;
  LLMCTL_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...));
}

}  // namespace llmctl::kernels::cuda
