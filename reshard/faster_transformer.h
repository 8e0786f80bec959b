// FasterTransformer's layout for every family: file names in the notation, and config.ini.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "formats/checkpoint.h"
#include "reshard/families/family.h"
#include "reshard/model_config.h"
#include "reshard/rule.h"

namespace llmctl::reshard {

/// The section of config.ini whose loader fits the model: gpt, gptj, gptneox, llama or qwen2.
std::string_view ft_section(const ModelConfig& config);

/// The files of a model with this architecture. Rows whose loader demands an output matrix use the
/// embedding when the head is tied (canonical name `output`: head, or embed).
/// Throws kUsage for architectures that no FasterTransformer loader computes.
std::vector<TensorRule> ft_rules(const ModelConfig& config);
/// Files that are known and not needed.
std::span<const DropRule> ft_drops();

/// config.ini -> ModelConfig; what old files leave out is taken from the tensors present. Throws
/// kInvalidInput naming the key.
ModelConfig read_ft_config(const formats::Checkpoint& checkpoint);

struct FtConfigOptions {
  int64_t tp = 1;
  DType dtype = DType::F32;
  std::string model_name;
  /// Exactly the keys of FasterTransformer's own converters, its omissions included. Otherwise
  /// the missing ones are added, and a section [llmctl] with what the format cannot say.
  bool exact = false;
};
/// The properties of a model that FasterTransformer's own keys cannot say, as "name = value": its
/// loaders would compute another model. Empty for the models that its converters take.
std::vector<std::string> unsaid_in_ft(const ModelConfig& config, const FtConfigOptions& options);

std::string write_ft_config(const ModelConfig& config, const FtConfigOptions& options);

}  // namespace llmctl::reshard
