// --activation-dtype: what enters matrix products, of the verbs that compute.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "formats/core/dtype.h"
#include "kernels/linear.h"
#include "runtime/device.h"

namespace llmctl::cli {

void add_activation_dtype(CLI::App& verb, std::string& target);

/// What the flag says of products with matrices of dtype `held`; F32 for an empty one. Throws
/// kUsage where it cannot be had.
kernels::Activations find_activations(const std::string& name, DType held, runtime::Device device);

}  // namespace llmctl::cli
