#include "cli/device.h"

#include "cli/output.h"
#include "formats/core/error.h"
#include "runtime/cuda/back_end.h"

namespace llmctl::cli {
namespace {

constexpr std::string_view kDevices[] = {"cpu", "cuda", "auto"};

}  // namespace

void DeviceFlags::add(CLI::App& verb) {
  add_choice(verb, "--device", name, kDevices,
             "Compute on the processor, on GPUs, or on GPUs where there is one [cpu]");
  verb.add_flag("--share-device", share, "Several ranks may use one GPU");
}

void DeviceFlags::apply(runtime::EngineOptions& options, bool in_processes) const {
  if (share && name == "cpu") throw_usage("--share-device", "goes with --device cuda only");
  if (name == "cuda" && in_processes) {
    throw_usage("--device cuda", "the ranks of a GPU run are threads of one process",
                "start one llmctl with --tp and --pp, without mpirun");
  }
  options.share_device = share;
  if (name == "cuda") {
    runtime::cuda::count_devices();
    options.device = runtime::Device::kCuda;
  }
  if (name != "auto" || in_processes) return;
  if (const auto problem = runtime::cuda::find_problem()) {
    return print_note("--device auto: " + problem->message() + "; the CPU computes");
  }
  options.device = runtime::Device::kCuda;
}

}  // namespace llmctl::cli
