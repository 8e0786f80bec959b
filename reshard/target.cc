#include "reshard/target.h"

#include <map>

#include "formats/core/error.h"
#include "formats/registry.h"
#include "reshard/export.h"

namespace llmctl::reshard {

using formats::FilePlan;
using formats::StoredTensor;

FilePlan text_file(const std::string& name, std::string text) {
  FilePlan plan;
  plan.name = name;
  plan.size_bytes = text.size();
  plan.literals.push_back({0, std::move(text)});
  return plan;
}

DType main_dtype(const Model& model) {
  std::map<DType, uint64_t> bytes;
  for (const std::string& key : model.keys()) {
    for (const SourcePiece& piece : model.pieces(key)) {
      const StoredTensor& tensor = model.checkpoint().tensors[static_cast<size_t>(piece.tensor)];
      bytes[tensor.dtype] += tensor.num_bytes();
    }
  }
  DType best = DType::F32;
  uint64_t most = 0;
  for (const auto& [dtype, count] : bytes) {
    if (!dtype_info(dtype).flag.empty() && count > most) {
      best = dtype;
      most = count;
    }
  }
  return best;
}

std::function<DType(const Shape&, DType)> choose_dtype(const Model& model,
                                                       std::optional<DType> asked) {
  const std::optional<DType> vectors = vector_dtype_of(model.checkpoint());
  return [asked, vectors](const Shape& shape, DType source) {
    if (asked) return *asked;
    return vectors && shape.size() == 1 ? *vectors : source;
  };
}

void note_left_out(Target& target) {
  for (const std::string& key : target.plan.left_out) {
    target.notes.push_back("'" + key +
                           "' is left out: the target format has no place for it, and only "
                           "padding positions read it");
  }
}

void place_plan(Target& target, const std::string& format, const formats::WriteOptions& options) {
  std::vector<formats::TargetTensor> tensors;
  for (const PlannedTensor& tensor : target.plan.tensors) tensors.push_back(tensor.target);
  target.files = formats::find_format(format)->place(tensors, options);
  note_left_out(target);
}

Target make_target(const Model& model, const ConvertOptions& options) {
  if (options.format == "ft") return make_faster_transformer_target(model, options);
  if (options.format == "export") return make_export_target(model, options);
  if (options.format == "megatron") return make_megatron_target(model, options);
  return make_hugging_face_target(model, options);
}

}  // namespace llmctl::reshard
