// What a conversion writes in one format: the plan, the files, and what goes with them.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "formats/checkpoint.h"
#include "reshard/convert.h"
#include "reshard/manifest.h"
#include "reshard/model.h"
#include "reshard/plan.h"

namespace llmctl::reshard {

struct Target {
  Plan plan;
  std::vector<formats::FilePlan> files;
  std::vector<std::filesystem::path> side_files;  ///< copied as they are
  std::vector<std::string> notes;                 ///< what the format cannot say, one line each
  Geometry geometry;
};

/// Decides what `options` ask for. Throws what make_plan throws, and kUsage for what the format
/// cannot express.
Target make_target(const Model& model, const ConvertOptions& options);

// One file each: target_<format>.cc.
Target make_hugging_face_target(const Model& model, const ConvertOptions& options);
Target make_faster_transformer_target(const Model& model, const ConvertOptions& options);
Target make_megatron_target(const Model& model, const ConvertOptions& options);
Target make_export_target(const Model& model, const ConvertOptions& options);

/// A file that holds just `text`.
formats::FilePlan text_file(const std::string& name, std::string text);

/// The dtype that most bytes of the model are stored in, if it is one that can be written.
DType main_dtype(const Model& model);

/// PlanOptions::dtype: what is asked for; else as stored, or as it was before an export widened it.
std::function<DType(const Shape& shape, DType source)> choose_dtype(const Model& model,
                                                                    std::optional<DType> asked);

/// Notes what of the model the target has no place for.
void note_left_out(Target& target);

/// Lays the planned tensors out in the files of `format` and notes what was left out.
void place_plan(Target& target, const std::string& format, const formats::WriteOptions& options);

}  // namespace llmctl::reshard
