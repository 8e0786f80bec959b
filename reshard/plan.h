// A plan: for every target tensor, which boxes come from which stored tensors.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/checkpoint.h"
#include "kernels/copy_box.h"
#include "kernels/quantization.h"
#include "reshard/model.h"
#include "reshard/product.h"
#include "reshard/rule.h"

namespace llmctl::reshard {

/// One strided copy out of a stored tensor into a target tensor; offsets in elements.
struct CopyOp {
  int source = 0;  ///< index into Checkpoint::tensors
  kernels::Box box;
  int64_t src_offset = 0, dst_offset = 0;
};

struct PlannedTensor {
  formats::TargetTensor target;
  std::vector<CopyOp> ops;            ///< disjoint in the target
  std::vector<CopyOp> plus;           ///< added afterwards, in the target's dtype
  bool has_padding = false;           ///< some elements are written by no op: they are zeros
  double multiply = 1, divide = 1;    ///< applied to each term in the target's dtype
  std::optional<RowProduct> product;  ///< instead of ops: the tensor is that product
  /// What the sink makes of the rows, whose dtype is then that of the source.
  kernels::Quantization quantization = {};
  /// Where the model's tensors lie in it, for digests of what is written; Piece::tensor is the key.
  std::vector<Piece> pieces;

  uint64_t num_bytes() const;
};

struct Plan {
  const Model* model = nullptr;  ///< must outlive the plan
  std::vector<PlannedTensor> tensors;
  /// Canonical tensors that the target has no place for; all of them auxiliary.
  std::vector<std::string> left_out;
  /// Keys of the canonical tensors that some target tensor takes up.
  std::set<std::string> used;

  uint64_t bytes_in() const;  ///< of the stored tensors that are read, each once
  uint64_t bytes_out() const;
};

struct PlanOptions {
  int64_t tp = 1;
  /// Only this rank's tensors, and of split tensors only its part; all ranks when absent.
  std::optional<int64_t> only_rank;
  int64_t first_layer = 0, end_layer = -1;  ///< -1: all
  /// Subtracted from layer numbers where the target's names are local to a stage.
  int64_t layer_offset = 0;
  /// Tensors that are not split stand on every rank too, each with its rank.
  bool every_rank = false;
  /// Global sizes of `~` axes, padding included (BindOptions::padded_sizes).
  std::map<std::string, int64_t, std::less<>> padded_sizes;
  /// The dtype of a target tensor, from its shape and the dtype its sources have in common (F32
  /// when they differ).
  std::function<DType(const Shape& shape, DType source)> dtype;
  /// What becomes of a rule's tensor, by the rule's name; empty: nothing is quantised.
  std::function<kernels::Quantization(std::string_view rule)> quantization;
  /// Whether a canonical tensor (not auxiliary) that no rule takes up is an error.
  bool must_use_all = true;
  /// Whether rules for `embed` and `head` take a model that has them only as products.
  bool multiply_out = false;
  std::string target_name;  ///< for messages: "FasterTransformer"
};

/// Throws kUsage when a canonical tensor of the model, auxiliary ones apart, is in no plan.
void check_all_used(const Model& model, const std::set<std::string>& used,
                    const std::string& target_name);

/// Plans every rule that the model has the tensors for, globals first. Throws kUsage when tp does
/// not fit the model, or when a tensor has no place in the target.
Plan make_plan(const Model& model, std::span<const TensorRule> rules, const PlanOptions& options);

/// Copies that fill `piece` of a target from whatever holds `key`; each element once.
/// `multiply` receives the source tp where the source is stored divided.
std::vector<CopyOp> plan_piece(const Model& model, const std::string& key, const Piece& piece,
                               double& multiply);

/// The element range [lo, hi) that ops touch on one side.
struct OpGroup {
  int64_t lo = 0, hi = 0;
  std::vector<CopyOp> ops;
};
enum class Side { kSource, kTarget };
/// Cuts the ops along their slowest axes and groups them so that groups are disjoint ranges, in
/// order, of about `cap` elements (more only where one index of the slowest axis is longer).
/// Requires: all ops share one tensor on that side.
std::vector<OpGroup> group_ops(const std::vector<CopyOp>& ops, Side side, int64_t cap);

}  // namespace llmctl::reshard
