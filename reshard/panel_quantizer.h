// Quantises one planned matrix, panel by panel, and keeps account of what that did to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/quantized.h"
#include "reshard/plan.h"

namespace llmctl::reshard {

/// What quantising did to a tensor.
struct QuantizationError {
  std::string name;  ///< of the rank's tensor
  int tp_rank = -1, pp_rank = -1;
  double relative_rms = 0;  ///< sqrt(sum (w - w')^2 / sum w^2)
  double max_error = 0;     ///< largest |w - w'|
  double error_squares = 0, weight_squares = 0;
};

/// The file of an export that has the list below, for people and programs.
inline constexpr const char* kQuantizationReport = "quantization-errors.json";
/// The tensors' errors as JSON, a line each, and of all together.
std::string quantization_report(const std::vector<QuantizationError>& errors);
/// sqrt(sum of error squares / sum of weight squares) over all tensors.
double total_relative_rms(const std::vector<QuantizationError>& errors);

/// Thread-safe.
class PanelQuantizer {
 public:
  /// Requires: the tensor is planned to be quantised; the plan outlives this.
  PanelQuantizer(const Plan& plan, size_t tensor);

  /// Fills `panels` from the rows of panel `panel` and those after it, in the planned dtype. Throws
  /// kInvalidInput, naming tensor and place, for a weight that is not finite or does not fit.
  void quantize(std::byte* panels, int64_t panel, std::span<const std::byte> rows);
  /// Of what was quantised so far; the same in any order of panels. Nothing when the sources were
  /// quantised so already and nothing was changed.
  std::optional<QuantizationError> error() const;

 private:
  const Plan& plan_;
  const PlannedTensor& tensor_;
  std::once_flag scales_flag_;                    // guards the making of scales_
  std::vector<float> scales_;                     // of sources that are quantised already
  std::vector<kernels::QuantizeResult> results_;  // by panel
};

}  // namespace llmctl::reshard
