#include "runtime/cuda/back_end.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include "kernels/cuda/check.h"
#include "kernels/cuda/device_code.h"
#include "runtime/cuda/decoder.h"

namespace llmctl::runtime::cuda {
namespace {

constexpr const char* kFlag = "--device cuda";

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

bool is_16bit(DType dtype) { return dtype == DType::F16 || dtype == DType::BF16; }

[[noreturn]] void refuse_dtype(const std::string& what) {
  throw_usage(kFlag, what + ", and the device computes with FP16 and BF16",
              "add --dtype fp16 or --dtype bf16, or use --device cpu");
}

/// Throws kUsage for what no kernel computes.
void check_config(const ModelConfig& config, const ModelOptions& options) {
  const auto refuse = [](const std::string& what) { throw_usage(kFlag, what, "use --device cpu"); };
  if (config.localized_filtering) refuse("localized filtering (Yuan 2.0) runs on the CPU only");
  if (config.position == PositionKind::kRotary && config.rope_in_bf16) {
    refuse("rotary angles rounded to BF16 (--rope-precision megatron_bf16) run on the CPU only");
  }
  if (config.hidden_size % 8 != 0 || config.embed_dim() % 8 != 0) {
    refuse("a hidden_size of " + std::to_string(config.hidden_size) +
           " is no multiple of 8, which the device needs");
  }
  if (config.hidden_size > 16384) {
    refuse("a hidden_size of " + std::to_string(config.hidden_size) + " is above 16384");
  }
  if (config.head_dim > 256) {
    refuse("a head_dim of " + std::to_string(config.head_dim) + " is above 256");
  }
  const int64_t page = options.page_size;
  if (page < 16 || (page & (page - 1)) != 0) {
    refuse("pages of " + std::to_string(page) + " tokens are no power of two from 16 on");
  }
}

/// Of the matrices on the device.
DType matrix_dtype(const reshard::RankWeights& weights, std::span<const std::string> names) {
  std::optional<DType> dtype;
  for (const std::string& name : names) {
    const auto* tensor = weights.find(name);
    if (tensor == nullptr || !tensor->is_matrix()) continue;
    if (!is_16bit(tensor->dtype)) {
      refuse_dtype("'" + name + "' is " + std::string(dtype_name(tensor->dtype)));
    }
    if (dtype && *dtype != tensor->dtype) {
      refuse_dtype("the matrices are of two dtypes, " + std::string(dtype_name(*dtype)) + " and " +
                   std::string(dtype_name(tensor->dtype)));
    }
    dtype = tensor->dtype;
  }
  if (!dtype) throw Error(ErrorCode::kInternal, "a rank without matrices");
  return *dtype;
}

std::vector<std::string> matrix_names(const RankPlace& place) {
  std::vector<std::string> names = {"embed", "embed_narrow", "project_in", "pos",
                                    "head",  "head_narrow",  "project_out"};
  for (int64_t l = place.first_layer; l < place.end_layer; ++l) {
    for (const char* name : {"qkv", "o", "gate_up", "up", "down"}) {
      names.push_back("layers." + std::to_string(l) + "." + name);
    }
  }
  return names;
}

}  // namespace

std::optional<Error> find_problem() {
  int driver = 0, runtime = 0, count = 0;
  cudaRuntimeGetVersion(&runtime);
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (driver == 0) {
    return Error(ErrorCode::kEnvironment, "no NVIDIA driver is loaded on this machine", kFlag,
                 "install one for CUDA " + version_text(runtime) + ", or use --device cpu");
  }
  // Drivers run what was built for an older minor version of their CUDA, not for a newer major one.
  if (driver / 1000 < runtime / 1000) {
    return Error(ErrorCode::kEnvironment,
                 "the NVIDIA driver is for CUDA " + version_text(driver) +
                     ", this llmctl was built for CUDA " + version_text(runtime),
                 kFlag, "install a newer driver, or use --device cpu");
  }
  if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0)) {
    return Error(ErrorCode::kEnvironment, "there is no CUDA device on this machine", kFlag,
                 "look at nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu");
  }
  if (status != cudaSuccess) {
    return Error(ErrorCode::kEnvironment,
                 std::string(cudaGetErrorName(status)) + ": " + cudaGetErrorString(status), kFlag,
                 "look at nvidia-smi, or use --device cpu");
  }
  return std::nullopt;
}

int count_devices() {
  if (const auto problem = find_problem()) throw *problem;
  int count = 0;
  LLMCTL_CUDA_CHECK(cudaGetDeviceCount(&count));
  return count;
}

Placement place_ranks(int num_ranks, bool may_share) {
  const int count = count_devices();
  if (num_ranks > count && !may_share) {
    throw Error(ErrorCode::kEnvironment,
                std::to_string(num_ranks) + " ranks need as many devices, and there " +
                    (count == 1 ? "is 1" : "are " + std::to_string(count)),
                kFlag, "use a smaller --tp or --pp, or let ranks share with --share-device");
  }
  const Placement placement{num_ranks, std::min(num_ranks, count)};
  for (int device = 0; device < placement.num_devices; ++device) {
    LLMCTL_CUDA_CHECK(cudaSetDevice(device));
    if (kernels::cuda::has_device_code()) continue;
    int major = 0, minor = 0;
    LLMCTL_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    LLMCTL_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    throw Error(ErrorCode::kEnvironment,
                "has compute capability " + std::to_string(major) + "." + std::to_string(minor) +
                    ", for which this llmctl has no code",
                "cuda device " + std::to_string(device),
                "build it with -DCMAKE_CUDA_ARCHITECTURES=" + std::to_string(major) +
                    std::to_string(minor));
  }
  return placement;
}

void check_model(const reshard::Model& model, const ModelConfig& config, int tp, int pp,
                 const std::vector<int>& local_ranks, const Placement& placement,
                 const ModelOptions& options) {
  check_config(config, options);
  if (options.dtype && !is_16bit(*options.dtype)) {
    refuse_dtype("--dtype " + std::string(dtype_name(*options.dtype)) + " was asked for");
  }
  if (!options.dtype) {
    for (const std::string& key : model.keys()) {
      for (const reshard::SourcePiece& piece : model.pieces(key)) {
        const auto& tensor = model.checkpoint().tensors[static_cast<size_t>(piece.tensor)];
        if (tensor.shape.size() < 2 || is_16bit(tensor.dtype)) continue;
        refuse_dtype("tensor '" + printable(tensor.name, 200) + "' is " +
                     std::string(dtype_name(tensor.dtype)));
      }
    }
  }
  std::vector<uint64_t> needed(static_cast<size_t>(placement.num_devices));
  for (size_t i = 0; i < local_ranks.size(); ++i) {
    const RankPlace place = place_of_rank(config, tp, pp, local_ranks[i]);
    needed[i % needed.size()] += device_weight_bytes(config, place) +
                                 device_scratch_bytes(config, place, options.max_tokens);
  }
  for (size_t device = 0; device < needed.size(); ++device) {
    size_t free_bytes = 0, total_bytes = 0;
    LLMCTL_CUDA_CHECK(cudaSetDevice(static_cast<int>(device)));
    LLMCTL_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
    if (needed[device] <= free_bytes) continue;
    throw Error(ErrorCode::kEnvironment,
                "weights and activations need " + std::to_string((needed[device] >> 20) + 1) +
                    " MiB, and " + std::to_string(free_bytes >> 20) + " of " +
                    std::to_string(total_bytes >> 20) + " MiB are free",
                "cuda device " + std::to_string(device),
                "split the model over more devices (--tp, --pp), or use --device cpu");
  }
}

std::unique_ptr<RankModel> make_model(const ModelConfig& config, const RankPlace& place,
                                      reshard::RankWeights weights, ThreadPool& pool,
                                      const Placement& placement, int local_rank,
                                      const ModelOptions& options) {
  check_config(config, options);
  const int device = local_rank % placement.num_devices;
  LLMCTL_CUDA_CHECK(cudaSetDevice(device));
  const DType dtype = matrix_dtype(weights, matrix_names(place));
  if (options.kv_dtype && *options.kv_dtype != dtype) {
    throw_usage("--kv-dtype",
                "keys and values on the device have the dtype of the matrices, " +
                    std::string(dtype_name(dtype)),
                "leave it out");
  }
  return std::make_unique<DeviceDecoder>(config, place, weights, pool, device,
                                         placement.num_devices, dtype, options);
}

}  // namespace llmctl::runtime::cuda
