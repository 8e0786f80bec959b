#include "reshard/target.h"

#include <map>

#include "formats/core/error.h"
#include "formats/registry.h"

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

void place_plan(Target& target, const std::string& format, const formats::WriteOptions& options) {
  std::vector<formats::TargetTensor> tensors;
  for (const PlannedTensor& tensor : target.plan.tensors) tensors.push_back(tensor.target);
  target.files = formats::find_format(format)->place(tensors, options);
  for (const std::string& key : target.plan.left_out) {
    target.notes.push_back("'" + key +
                           "' is left out: the target format has no place for it, and only "
                           "padding positions read it");
  }
}

Target make_target(const Model& model, const ConvertOptions& options) {
  if (options.format == "ft") return make_faster_transformer_target(model, options);
  if (options.format == "megatron") return make_megatron_target(model, options);
  return make_hugging_face_target(model, options);
}

}  // namespace llmctl::reshard
