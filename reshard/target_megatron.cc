#include <algorithm>

#include "formats/core/error.h"
#include "reshard/megatron.h"
#include "reshard/target.h"

namespace llmctl::reshard {
namespace {

constexpr int64_t kVocabMultiple = 128;  // Megatron's and Yuan's default

/// Rows of the table in the target.
int64_t vocab_rows(const Model& model, int64_t tp) {
  const ModelConfig& config = model.config();
  if (const auto& info = model.checkpoint().megatron) {
    int64_t multiple = kVocabMultiple;
    if (const auto args = info->args()) {
      const auto node = args->find("make_vocab_size_divisible_by");
      const auto own = node ? node->find_int() : std::nullopt;
      if (own && *own > 0 && *own <= config.vocab_size) multiple = *own;
    }
    return pad_vocab(config.vocab_size, tp, multiple);
  }
  // Yuan's tables do not grow with tp, Megatron's do.
  const int64_t step = kVocabMultiple * (config.localized_filtering ? 1 : tp);
  return pad_vocab((config.vocab_size + step - 1) / step * step, tp, kVocabMultiple);
}

/// The source's own blocks when the number of stages stays and nothing else is asked for.
std::vector<int64_t> layers_of(const Model& model, const ConvertOptions& options) {
  const auto& info = model.checkpoint().megatron;
  const bool is_free = options.pipeline_blocks.empty() && options.virtual_pp == 1;
  if (info && is_free && info->layers.size() == 1 &&
      static_cast<int64_t>(info->layers.front().size()) == options.pp) {
    return info->layers.front();
  }
  return share_layers(model.config().num_hidden_layers, options.pp, options.virtual_pp,
                      options.pipeline_blocks);
}

}  // namespace

Target make_megatron_target(const Model& model, const ConvertOptions& options) {
  const auto& info = model.checkpoint().megatron;
  MegatronTarget megatron;
  megatron.tp = options.tp;
  megatron.pp = options.pp;
  megatron.virtual_pp = options.virtual_pp;
  megatron.layers = layers_of(model, options);
  megatron.padded_vocab_size = vocab_rows(model, options.tp);
  if (info) {
    megatron.dialect = info->dialect;
    megatron.version = model.megatron_version();
  }
  if (options.megatron_names) {
    const bool core = *options.megatron_names == "core";
    if (core != megatron.dialect.core) {
      megatron.dialect = {};
      megatron.dialect.core = core;
    }
    if (core) megatron.version = std::max(megatron.version, 2.0);
  }
  if (megatron.dialect.core && model.config().localized_filtering) {
    throw_usage("--megatron-names core", "Megatron-Core has no localized filtering", "use legacy");
  }
  const std::optional<DType> dtype = options.dtype;
  Target target;
  target.plan = plan_megatron(model, megatron, choose_dtype(model, dtype));
  auto write = std::make_shared<formats::MegatronWriteOptions>();
  write->tp = static_cast<int>(options.tp);
  write->pp = static_cast<int>(options.pp);
  write->checkpoint_version = megatron.version;
  write->flat = megatron.dialect.core;
  write->keep_rng = options.keep_rng;
  if (info) {
    write->step_name = info->step_name;
    write->iteration = info->iteration;
    write->source = info;
  }
  const bool has_args = info && info->args().has_value();
  write->args =
      megatron_args(model.config(), megatron, dtype.value_or(main_dtype(model)), !has_args);
  place_plan(target, options.format, {options.max_shard_bytes, std::move(write)});
  target.side_files = model.checkpoint().side_files;
  target.geometry.tensor_parallel_size = options.tp;
  target.geometry.pipeline_parallel_size = options.pp;
  if (options.pp > 1 && options.virtual_pp == 1) target.geometry.pipeline_blocks = megatron.layers;
  if (info && info->step_name == "iter_0000000") {
    target.notes.push_back(
        "Megatron refuses to load iteration 0: rename iter_0000000 and correct "
        "latest_checkpointed_iteration.txt before training goes on");
  }
  return target;
}

}  // namespace llmctl::reshard
