// What a test may change about the emulated machine, and ask of it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace llmctl::cuda_emulation {

/// The machine as a program finds it. Applies to calls made afterwards.
struct Settings {
  int device_count = 1;
  int driver_version = 13000;  ///< 0: no driver
  int runtime_version = 13000;
  int compute_major = 9;
  int num_sms = 1;        ///< few blocks, so that kernels that loop over their work do
  bool has_blas = false;  ///< a library for large products
  size_t memory_bytes = size_t{4} << 30;  ///< of each device
};
void set_settings(const Settings& settings);
Settings settings();

/// Kernels run so far.
uint64_t num_launches();
/// Graphs launched so far.
uint64_t num_graph_launches();
/// Device memory held now, of all devices.
size_t bytes_in_use();

}  // namespace llmctl::cuda_emulation
