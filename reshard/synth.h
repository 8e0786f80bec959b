// Fills a plan with seeded random weights instead of a checkpoint's.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>

#include "formats/checkpoint.h"
#include "reshard/executor.h"
#include "reshard/plan.h"

namespace llmctl::reshard {

/// Writes every tensor of a plan that was made for a described model (describe_model) with the
/// values of RandomTensor, rounded to the target's dtype. The same bytes for any `jobs`, and the
/// same weights whatever the layout. At most some 16 MiB of memory for each job. Throws kUsage for
/// a target tensor that is a product of two; kInterrupted when cancelled.
void fill_random(const Plan& plan, uint64_t seed, TensorSink& sink, const ExecuteOptions& options);

/// Makes the files of `files` below `directory` with their headers and metadata, and holes of zeros
/// where tensors lie; checksums are those of the zeros. `plan` gives the tensors' sizes.
void write_sparse(const Plan& plan, std::span<const formats::FilePlan> files,
                  const std::filesystem::path& directory);

}  // namespace llmctl::reshard
