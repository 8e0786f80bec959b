#include "cli/activations.h"

#include <array>
#include <string_view>

#include "cli/flags.h"
#include "formats/core/error.h"

namespace llmctl::cli {

void add_activation_dtype(CLI::App& verb, std::string& target) {
  static constexpr std::array<std::string_view, 2> kNames = {"fp32", "bf16"};
  add_choice(verb, "--activation-dtype", target, kNames,
             "Round what enters products with BF16 matrices to this dtype [fp32]");
}

kernels::Activations find_activations(const std::string& name, DType held, runtime::Device device) {
  if (!name.empty() && device == runtime::Device::kCuda) {
    throw_usage("--activation-dtype", "on GPUs activations are of the matrices' dtype",
                "leave it out");
  }
  if (name != "bf16") return kernels::Activations::kF32;
  if (held != DType::BF16) {
    throw_usage("--activation-dtype bf16",
                "is for BF16 matrices, and these are " + std::string(dtype_name(held)),
                "add --dtype bf16, or leave it out");
  }
  return kernels::Activations::kBF16;
}

}  // namespace llmctl::cli
