#include <nlohmann/json.hpp>
#include <optional>

#include "formats/core/error.h"
#include "formats/export.h"
#include "kernels/quantized.h"
#include "reshard/export.h"
#include "reshard/quantization.h"
#include "reshard/rank_layout.h"
#include "reshard/target.h"

namespace llmctl::reshard {
namespace {

using formats::StoredTensor;
using Json = nlohmann::ordered_json;

/// The dtype of all vectors of the source, when it is one and F32 holds its values.
std::optional<DType> source_vector_dtype(const Model& model) {
  if (const auto known = vector_dtype_of(model.checkpoint())) return known;
  std::optional<DType> common;
  for (const std::string& key : model.keys()) {
    // Biases of queries, keys and values have the axes of heads apart.
    const Shape shape = canonical_shape(Model::canonical_of(key), model.sizes());
    if (shape.size() != 1 && !key.ends_with("b")) continue;
    for (const SourcePiece& piece : model.pieces(key)) {
      const DType dtype = model.checkpoint().tensors[static_cast<size_t>(piece.tensor)].dtype;
      if (common && *common != dtype) return std::nullopt;
      common = dtype;
    }
  }
  if (common && *common != DType::F16 && *common != DType::BF16) return std::nullopt;
  return common;
}

std::vector<int64_t> stages(int64_t num_layers, int64_t pp) {
  std::vector<int64_t> layers;
  for (int64_t stage = 0; stage < pp; ++stage) {
    const LayerRange range = layers_of_stage(num_layers, pp, stage);
    layers.push_back(range.end - range.first);
  }
  return layers;
}

Plan plan_ranks(const Model& model, const ConvertOptions& options,
                const kernels::Quantization& quantization) {
  const ModelConfig& config = model.config();
  Plan plan;
  plan.model = &model;
  for (int64_t stage = 0; stage < options.pp; ++stage) {
    const LayerRange layers = layers_of_stage(config.num_hidden_layers, options.pp, stage);
    PlanOptions part_options;
    part_options.tp = options.tp;
    part_options.first_layer = layers.first;
    part_options.end_layer = layers.end;
    part_options.every_rank = true;
    part_options.must_use_all = false;
    part_options.target_name = "the export";
    part_options.dtype = [&](const Shape& shape, DType source) {
      return rank_dtype(shape, source, options.dtype);
    };
    part_options.quantization = [&](std::string_view rule) {
      return is_quantizable(rule) ? quantization : kernels::Quantization{};
    };
    Plan part =
        make_plan(model, rank_layout(config, stage == 0, stage + 1 == options.pp), part_options);
    for (PlannedTensor& tensor : part.tensors) {
      tensor.target.pp_rank = static_cast<int>(stage);
      plan.tensors.push_back(std::move(tensor));
    }
    if (stage == 0) plan.left_out = part.left_out;
    plan.used.merge(part.used);
  }
  check_all_used(model, plan.used, "the export");
  return plan;
}

/// Two exports of equal id hold the same tensors in the same places.
std::string export_id(const Model& model, const ConvertOptions& options,
                      const kernels::Quantization& quantization) {
  Json request = {source_fingerprint(model.checkpoint()), options.tp, options.pp,
                  options.dtype ? dtype_name(*options.dtype) : "",
                  formats::matrix_layout_name(options.matrix_layout)};
  if (quantization) request.push_back(quantization_text(quantization));
  return text_fingerprint(request.dump());
}

std::string model_json(const Model& model, const ConvertOptions& options, const Target& target,
                       const formats::ExportWriteOptions& write,
                       const kernels::Quantization& quantization) {
  const auto line = [](const char* key, const Json& value) {
    return "  " + Json(key).dump() + ": " + value.dump() + ",\n";
  };
  const DType matrices = options.dtype.value_or(main_dtype(model));
  const Json quantized = {
      {"method", "symmetric"},
      {"bits", quantization.bits},
      {"group_size", quantization.group_size},
      {"scale_dtype", dtype_name(kernels::quantized_scale_dtype(quantization))}};
  const std::optional<DType> vectors = source_vector_dtype(model);
  std::string text = "{\n";
  text += line("llmctl_export",
               quantization ? formats::kQuantizedExportVersion : formats::kExportVersion);
  text += line("llmctl_version", llmctl_version());
  text += line("id", write.id);
  text += line("tensor_parallel_size", write.tp);
  text += line("pipeline_parallel_size", write.pp);
  text += line("dtype", dtype_name(matrices));
  text += line("vector_dtype", vectors ? Json(dtype_name(*vectors)) : Json(nullptr));
  text += line("compression", write.compressed ? Json("zstd") : Json(nullptr));
  text += line("matrix_layout", formats::matrix_layout_name(write.layout));
  if (quantization) text += line("quantization", quantized);
  text += "  \"config\": ";
  ModelConfig config = model.config();
  config.dtype = matrices;
  for (const char c : write_export_config(config)) {
    text += c;
    if (c == '\n') text += "  ";
  }
  text += ",\n  \"ranks\": [";
  int64_t rank = 0;
  for (const formats::FilePlan& file : target.files) {
    const LayerRange layers = layers_of_stage(config.num_hidden_layers, write.pp, rank / write.tp);
    text += (rank == 0 ? "\n    " : ",\n    ") +
            Json{{"file",
                  file.name + (write.compressed ? std::string(formats::kCompressedSuffix) : "")},
                 {"size", file.size_bytes},
                 {"num_tensors", file.placements.size()},
                 {"first_layer", layers.first},
                 {"end_layer", layers.end}}
                .dump();
    ++rank;
  }
  return text + "\n  ]\n}\n";
}

/// As place_plan does, with the shapes that matrices have in the files.
void place_ranks(Target& target, std::shared_ptr<const formats::ExportWriteOptions> write) {
  std::vector<formats::TargetTensor> tensors;
  for (const PlannedTensor& tensor : target.plan.tensors) {
    formats::TargetTensor& stored = tensors.emplace_back(tensor.target);
    if (tensor.quantization) {
      stored.shape = quantized_shape(tensor.quantization, stored.shape);
      stored.dtype = DType::U8;
    } else if (write->layout == formats::MatrixLayout::kPanels16 && stored.shape.size() == 2) {
      stored.shape = panel_shape(stored.dtype, stored.shape);
    }
  }
  formats::WriteOptions options;
  options.exported = std::move(write);
  target.files = formats::place_export(tensors, options);
  note_left_out(target);
}

}  // namespace

Target make_export_target(const Model& model, const ConvertOptions& options) {
  const ModelConfig& config = model.config();
  if (options.pp > config.num_hidden_layers) {
    throw_usage("--pp " + std::to_string(options.pp),
                "the model has only " + std::to_string(config.num_hidden_layers) + " layers",
                "use at most --pp " + std::to_string(config.num_hidden_layers));
  }
  if (options.virtual_pp != 1 || !options.pipeline_blocks.empty()) {
    throw_usage(options.virtual_pp != 1 ? "--virtual-pp" : "--pipeline-blocks",
                "an export has one even block of layers on each stage", "leave it out");
  }
  const kernels::Quantization quantization = choose_quantization(model, options.quantization);
  if (quantization && options.matrix_layout != formats::MatrixLayout::kPanels16) {
    throw_usage("--matrix-layout", "quantised matrices are panels", "leave it out");
  }
  Target target;
  target.plan = plan_ranks(model, options, quantization);
  auto write = std::make_shared<formats::ExportWriteOptions>();
  write->tp = static_cast<int>(options.tp);
  write->pp = static_cast<int>(options.pp);
  write->id = export_id(model, options, quantization);
  write->compressed = options.compress;
  write->layout = options.matrix_layout;
  place_ranks(target, write);
  target.files.push_back(
      text_file(formats::kExportConfig, model_json(model, options, target, *write, quantization)));
  target.side_files = model.checkpoint().side_files;
  target.geometry.tensor_parallel_size = options.tp;
  target.geometry.pipeline_parallel_size = options.pp;
  if (options.pp > 1) {
    target.geometry.pipeline_blocks = stages(config.num_hidden_layers, options.pp);
  }
  return target;
}

}  // namespace llmctl::reshard
