#include "formats/core/atomic_directory.h"
#include "formats/json.h"
#include "reshard/faster_transformer.h"
#include "reshard/target.h"

namespace llmctl::reshard {
namespace {

namespace fs = std::filesystem;

std::string default_model_name(const Model& model, const ConvertOptions& options) {
  if (options.ft_exact) return options.source.string();
  const auto text = model.checkpoint().texts.find("config.json");
  if (text != model.checkpoint().texts.end()) {
    const auto json = formats::parse_json(text->second, "config.json");
    if (json.contains("_name_or_path") && json["_name_or_path"].is_string()) {
      const std::string name = json["_name_or_path"].get<std::string>();
      if (!name.empty() && name.find_first_of("\n\r%") == std::string::npos) return name;
    }
  }
  return without_trailing_slash(options.source).filename().string();
}

}  // namespace

Target make_faster_transformer_target(const Model& model, const ConvertOptions& options) {
  Target target;
  const ModelConfig& config = model.config();
  const std::vector<TensorRule> rules = ft_rules(config);
  const DType dtype = options.dtype.value_or(main_dtype(model));
  PlanOptions plan_options;
  plan_options.tp = options.tp;
  plan_options.dtype = [dtype](const Shape&, DType) { return dtype; };
  plan_options.target_name = "FasterTransformer";
  plan_options.multiply_out = true;
  target.plan = make_plan(model, rules, plan_options);
  place_plan(target, options.format, {});
  FtConfigOptions ft;
  ft.tp = options.tp;
  ft.dtype = dtype;
  ft.exact = options.ft_exact;
  ft.model_name =
      options.model_name.empty() ? default_model_name(model, options) : options.model_name;
  target.files.push_back(text_file("config.ini", write_ft_config(config, ft)));
  if (!options.ft_exact) target.side_files = model.checkpoint().side_files;
  std::string unsaid;
  for (const std::string& property : unsaid_in_ft(config, ft)) {
    unsaid += (unsaid.empty() ? "" : ", ") + property;
  }
  if (!unsaid.empty()) {
    target.notes.push_back("FasterTransformer's own keys cannot say " + unsaid +
                           ": its loaders compute another model" +
                           (options.ft_exact
                                ? "; without --ft-exact llmctl adds keys of its own"
                                : ", readers of the keys that llmctl adds the right one"));
  }
  target.geometry.tensor_parallel_size = options.tp;
  return target;
}

}  // namespace llmctl::reshard
