// One line of a layout table: how a stored tensor packs canonical ones.
#pragma once

#include <cstdint>
#include <string_view>

namespace llmctl::reshard {

/// Arithmetic on a stored tensor beside its layout.
enum class Step : uint8_t {
  kNone,
  /// Values are divided by tp in the stored dtype (FasterTransformer's GPT-NeoX row-parallel
  /// biases); read back, they are multiplied by tp.
  kDivideByTp,
};

/// A row of a table such as
///     {"model.layers.{l}.self_attn.q_proj.weight", "q : (heads d) hidden"}
/// `name` is the stored tensor's name with {l} for the global layer index; `layout` is a line of
/// the notation (docs/layout-notation.md). A row applies to a model that has all the canonical
/// tensors in it. Canonical names: embed head head_bias pos pos_lead embed_norm embed_norm_b
/// final_norm final_norm_b embed_narrow head_narrow project_in project_out; per layer norm1 norm1b
/// norm2 norm2b q k v o qb kb vb ob gate up down gateb upb downb (weights in [out, in] sense, b =
/// bias); conv1 conv1b conv2 conv2b lf_norm of Yuan's localized filtering.
struct TensorRule {
  std::string_view name;
  std::string_view layout;
  Step step = Step::kNone;
  /// A second layout line whose values are added, after the step, in the stored dtype.
  std::string_view plus = {};
};

}  // namespace llmctl::reshard
