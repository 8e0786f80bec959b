// Megatron-LM's and Yuan 2.0's layout: tensor names in the notation, `args`, and pipeline stages.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "formats/checkpoint.h"
#include "formats/megatron.h"
#include "formats/megatron_writer.h"
#include "reshard/families/family.h"
#include "reshard/model_config.h"
#include "reshard/plan.h"
#include "reshard/rule.h"

namespace llmctl::reshard {

/// The stored tensors of a model in one dialect and checkpoint_version. Owns the names.
class MegatronRules {
 public:
  MegatronRules(const ModelConfig& config, const formats::MegatronDialect& dialect, double version);
  MegatronRules(const MegatronRules&) = delete;
  MegatronRules& operator=(const MegatronRules&) = delete;

  std::span<const TensorRule> rules() const { return rules_; }
  std::span<const DropRule> drops() const { return drops_; }

 private:
  void add(const formats::MegatronDialect& dialect, std::string_view name, std::string_view layout);

  std::deque<std::string> names_;
  std::vector<TensorRule> rules_;
  std::vector<DropRule> drops_;
};

struct MegatronDescription {
  ModelConfig config;
  double version = 0;  ///< checkpoint_version, as the files or the user say
};

/// `args` and the tensors' shapes -> ModelConfig. Sizes come from the tensors; args that contradict
/// them are refused, as are architectures that the layouts do not describe. `settings` take the
/// place of attributes of `args`, and `checkpoint_version` that of the key. Throws kInvalidInput.
MegatronDescription read_megatron_config(const formats::Checkpoint& checkpoint,
                                         const std::map<std::string, std::string>& settings,
                                         bool keep_vocab_padding);

/// What a Megatron tree is to look like.
struct MegatronTarget {
  int64_t tp = 1, pp = 1, virtual_pp = 1;
  /// Layers of each chunk: of virtual stage c on stage p at c * pp + p.
  std::vector<int64_t> layers;
  formats::MegatronDialect dialect;
  double version = 3.0;
  int64_t padded_vocab_size = 0;
};

/// Shares num_layers evenly over pp x virtual_pp chunks, or takes `blocks` (of each stage). Throws
/// kUsage when they do not fit.
std::vector<int64_t> share_layers(int64_t num_layers, int64_t pp, int64_t virtual_pp,
                                  const std::vector<int64_t>& blocks);

/// The table's length with padding that tp divides: `rows` when it does already, else the next
/// multiple of `multiple` * tp.
int64_t pad_vocab(int64_t rows, int64_t tp, int64_t multiple);

/// Plans every rank of every stage. Target tensors have both ranks and are named by their path in
/// the files ("model.language_model...."). Throws what make_plan throws; kUsage for models that no
/// Megatron GPT computes.
Plan plan_megatron(const Model& model, const MegatronTarget& target,
                   const std::function<DType(const Shape&, DType)>& dtype);

/// The attributes of `args` that follow from the target. With `all`, every one that Megatron needs
/// to load the model (for sources without args); else only those that a reshard changes.
std::vector<std::pair<std::string, formats::MegatronArg>> megatron_args(
    const ModelConfig& config, const MegatronTarget& target, DType dtype, bool all);

/// Family of models that Megatron trains and no Hugging Face class computes.
const Family& megatron_family();

}  // namespace llmctl::reshard
