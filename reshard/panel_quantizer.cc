#include "reshard/panel_quantizer.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "formats/core/error.h"
#include "reshard/quantization.h"

namespace llmctl::reshard {

using kernels::kPanelRows;
using kernels::QuantizeResult;

namespace {

std::string place_of(const Plan& plan, const PlannedTensor& tensor, int64_t row) {
  std::string place = "tensor '" + tensor.target.name + "'";
  if (tensor.ops.empty()) return place;
  // The source's name says more to whoever has to mend it.
  const int64_t at = row * tensor.target.shape[1];
  for (const CopyOp& op : tensor.ops) {
    int64_t end = op.dst_offset + 1;
    for (int a = 0; a < op.box.num_axes; ++a) {
      end += (op.box.extents[a] - 1) * op.box.dst_strides[a];
    }
    if (at + tensor.target.shape[1] <= op.dst_offset || at >= end) continue;
    return stored_name(plan.model->checkpoint().tensors[static_cast<size_t>(op.source)]);
  }
  return place;
}

}  // namespace

double total_relative_rms(const std::vector<QuantizationError>& errors) {
  double error_squares = 0, weight_squares = 0;
  for (const QuantizationError& error : errors) {
    error_squares += error.error_squares;
    weight_squares += error.weight_squares;
  }
  return weight_squares > 0 ? std::sqrt(error_squares / weight_squares) : 0;
}

std::string quantization_report(const std::vector<QuantizationError>& errors) {
  using Json = nlohmann::ordered_json;
  std::string text = "{\n  \"relative_rms_error\": " + Json(total_relative_rms(errors)).dump() +
                     ",\n  \"tensors\": [";
  const char* separator = "\n    ";
  for (const QuantizationError& error : errors) {
    text += separator + Json{{"name", error.name},
                             {"tp_rank", error.tp_rank},
                             {"pp_rank", error.pp_rank},
                             {"relative_rms_error", error.relative_rms},
                             {"max_error", error.max_error}}
                            .dump();
    separator = ",\n    ";
  }
  return text + "\n  ]\n}\n";
}

PanelQuantizer::PanelQuantizer(const Plan& plan, size_t tensor)
    : plan_(plan),
      tensor_(plan.tensors[tensor]),
      results_(static_cast<size_t>((tensor_.target.shape[0] + kPanelRows - 1) / kPanelRows)) {}

void PanelQuantizer::quantize(std::byte* panels, int64_t panel, std::span<const std::byte> rows) {
  std::call_once(scales_flag_, [&] { scales_ = carried_scales(*plan_.model, tensor_); });
  const kernels::Quantization& q = tensor_.quantization;
  const DType dtype = tensor_.target.dtype;
  const int64_t columns = tensor_.target.shape[1];
  const size_t row_bytes = static_cast<size_t>(columns) * dtype_bytes(dtype);
  const auto num_rows = static_cast<int64_t>(rows.size() / row_bytes);
  const size_t panel_bytes = kernels::quantized_panel_bytes(q, columns);
  const int64_t blocks = kernels::quantized_blocks(q, columns);
  for (int64_t row = 0; row < num_rows; row += kPanelRows, ++panel, panels += panel_bytes) {
    const int64_t count = std::min(kPanelRows, num_rows - row);
    const int64_t first = panel * kPanelRows;
    const QuantizeResult result = kernels::quantize_panels(
        panels, rows.data() + static_cast<size_t>(row) * row_bytes, dtype, count, columns, q,
        scales_.empty() ? nullptr : scales_.data() + first * blocks);
    if (result.fault == QuantizeResult::Fault::kNotFinite) {
      throw_invalid(place_of(plan_, tensor_, first + result.fault_row),
                    "a weight is NaN or infinite, which no integer stands for (row " +
                        std::to_string(first + result.fault_row) + ", column " +
                        std::to_string(result.fault_column) + " of '" + tensor_.target.name + "')",
                    "correct the checkpoint, or leave --quant out");
    }
    if (result.fault == QuantizeResult::Fault::kTooLarge) {
      throw_invalid(place_of(plan_, tensor_, first + result.fault_row),
                    "the weights from column " + std::to_string(result.fault_column) + " of row " +
                        std::to_string(first + result.fault_row) + " of '" + tensor_.target.name +
                        "' need a scale beyond F16",
                    "quantise with one scale for each row: --group-size 0");
    }
    results_[static_cast<size_t>(panel)] = result;
  }
}

std::optional<QuantizationError> PanelQuantizer::error() const {
  if (!scales_.empty()) return std::nullopt;
  QuantizationError error;
  error.name = tensor_.target.name;
  error.tp_rank = tensor_.target.tp_rank;
  error.pp_rank = tensor_.target.pp_rank;
  for (const QuantizeResult& result : results_) {
    error.error_squares += result.error_squares;
    error.weight_squares += result.weight_squares;
    error.max_error = std::max(error.max_error, static_cast<double>(result.max_error));
  }
  if (error.weight_squares > 0) {
    error.relative_rms = std::sqrt(error.error_squares / error.weight_squares);
  }
  return error;
}

}  // namespace llmctl::reshard
