#include <algorithm>
#include <set>

#include "formats/core/error.h"
#include "formats/json.h"
#include "reshard/target.h"

namespace llmctl::reshard {
namespace {

using formats::StoredTensor;

bool lacks_prefix(const Model& model, std::string_view prefix) {
  const auto& tensors = model.checkpoint().tensors;
  return std::none_of(tensors.begin(), tensors.end(),
                      [&](const StoredTensor& tensor) { return tensor.name.starts_with(prefix); });
}

std::string hf_config(const Model& model, const ConvertOptions& options) {
  const DType dtype = options.dtype.value_or(main_dtype(model));
  ModelConfig config = model.config();
  config.dtype = dtype;
  if (model.checkpoint().format != "hf") return write_config(model.family(), config).dump(2) + "\n";
  const std::string& text = model.checkpoint().texts.at("config.json");
  auto json = formats::parse_json(text, "config.json");
  const std::string torch_name(dtype_info(dtype).torch);
  bool changed = false;
  if (options.dtype) {
    const char* key =
        json.contains("dtype") && !json.contains("torch_dtype") ? "dtype" : "torch_dtype";
    changed = !json.contains(key) || json[key] != torch_name;
    json[key] = torch_name;
  }
  // A head that was found to differ from the embedding must not be tied by the next reader.
  const bool tied = json.contains("tie_word_embeddings")
                        ? json["tie_word_embeddings"] == true
                        : read_config(model.family(), json, "config.json").tie_word_embeddings;
  if (tied != config.tie_word_embeddings) {
    json["tie_word_embeddings"] = config.tie_word_embeddings;
    changed = true;
  }
  // Another dtype must not change the arithmetic that a missing key stands for.
  if (read_config(model.family(), json, "config.json").rope_in_bf16 != config.rope_in_bf16) {
    json["rope_precision"] = config.rope_in_bf16 ? "megatron_bf16" : "fp32";
    changed = true;
  }
  return changed ? json.dump(2) + "\n" : text;
}

/// Rows of the embedding in all ranks' files together.
int64_t padded_vocab_size(const Model& model) {
  const SourcePiece& piece = model.pieces("embed").front();
  const StoredTensor& tensor = model.checkpoint().tensors[static_cast<size_t>(piece.tensor)];
  return tensor.shape.front() * model.checkpoint().tensor_parallel_size;
}

}  // namespace

Target make_hugging_face_target(const Model& model, const ConvertOptions& options) {
  Target target;
  std::vector<TensorRule> rules;
  std::vector<std::string> rule_names;  // backing for renamed rules
  const Family& family = model.family();
  if (family.tensors.empty()) {
    throw_usage("--to hf", "no Hugging Face family that llmctl knows computes this model",
                "describe one with --family-file");
  }
  // A table may know a tensor by two names; the first is the one to write.
  std::set<std::string_view> layouts;
  for (const TensorRule& rule : family.tensors) {
    if (layouts.insert(rule.layout).second) rules.push_back(rule);
  }
  const bool from_hf = model.checkpoint().format == "hf";
  if (from_hf && !family.prefix.empty() && lacks_prefix(model, family.prefix)) {
    rule_names.reserve(rules.size());
    for (TensorRule& rule : rules) {
      if (rule.name.starts_with(family.prefix)) {
        rule.name = rule_names.emplace_back(rule.name.substr(family.prefix.size()));
      }
    }
  }
  PlanOptions plan_options;
  plan_options.dtype = choose_dtype(model, options.dtype);
  plan_options.target_name = "Hugging Face";
  target.plan = make_plan(model, rules, plan_options);
  place_plan(target, options.format, {options.max_shard_bytes, nullptr});
  target.files.push_back(text_file("config.json", hf_config(model, options)));
  target.side_files = model.checkpoint().side_files;
  if (model.checkpoint().megatron != nullptr &&
      model.config().vocab_size == padded_vocab_size(model)) {
    target.notes.push_back("the size of the vocabulary without padding is not known: all " +
                           std::to_string(model.config().vocab_size) +
                           " rows are kept (--vocab-size N cuts)");
  }
  return target;
}

}  // namespace llmctl::reshard
