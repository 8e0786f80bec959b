// --device: what a verb computes with.
#pragma once

#include <string>

#include "cli/flags.h"
#include "runtime/engine.h"

namespace llmctl::cli {

struct DeviceFlags {
  std::string name = "cpu";
  bool share = false;

  /// `--device` and `--share-device`.
  void add(CLI::App& verb);
  /// Fills options.device and options.share_device. `auto` takes GPUs when there is one and nothing
  /// keeps this process from using it, and says with a note when not. Throws what
  /// cuda::count_devices throws for `cuda`; kUsage when `in_processes`, whose ranks cannot agree on
  /// devices.
  void apply(runtime::EngineOptions& options, bool in_processes) const;
};

}  // namespace llmctl::cli
