#include "reshard/plan.h"

#include <algorithm>
#include <set>

#include "formats/core/error.h"
#include "reshard/box.h"

namespace llmctl::reshard {

using formats::StoredTensor;

uint64_t PlannedTensor::num_bytes() const {
  return checked_num_bytes(target.dtype, target.shape).value();
}

uint64_t Plan::bytes_in() const {
  std::set<int> sources;
  for (const PlannedTensor& tensor : tensors) {
    for (const CopyOp& op : tensor.ops) sources.insert(op.source);
    for (const CopyOp& op : tensor.plus) sources.insert(op.source);
    if (tensor.product) {
      for (const std::string& key : {tensor.product->left, tensor.product->right}) {
        for (const SourcePiece& piece : model->pieces(key)) sources.insert(piece.tensor);
      }
    }
  }
  uint64_t bytes = 0;
  for (const int source : sources) {
    bytes += model->checkpoint().tensors[static_cast<size_t>(source)].num_bytes();
  }
  return bytes;
}

uint64_t Plan::bytes_out() const {
  uint64_t bytes = 0;
  for (const PlannedTensor& tensor : tensors) bytes += tensor.num_bytes();
  return bytes;
}

std::vector<CopyOp> plan_piece(const Model& model, const std::string& key, const Piece& piece,
                               double& multiply) {
  std::vector<CopyOp> ops;
  std::vector<IndexBox> rest = {IndexBox::of(piece)};
  for (const SourcePiece& source : model.pieces(key)) {
    const IndexBox held = IndexBox::of(source.piece);
    for (const IndexBox& wanted : rest) {
      const auto shared = intersect(wanted, held);
      if (!shared) continue;
      CopyOp op;
      op.source = source.tensor;
      op.src_offset = source.piece.offset;
      op.dst_offset = piece.offset;
      op.box.num_axes = static_cast<int>(piece.lo.size());
      for (size_t a = 0; a < piece.lo.size(); ++a) {
        op.box.extents[a] = shared->n[a];
        op.box.src_strides[a] = source.piece.stride[a];
        op.box.dst_strides[a] = piece.stride[a];
        op.src_offset += (shared->lo[a] - source.piece.lo[a]) * source.piece.stride[a];
        op.dst_offset += (shared->lo[a] - piece.lo[a]) * piece.stride[a];
      }
      if (source.step == Step::kDivideByTp) {
        multiply = static_cast<double>(model.checkpoint().tensor_parallel_size);
      }
      ops.push_back(op);
    }
    rest = subtract(rest, held);
    if (rest.empty()) break;
  }
  if (!rest.empty()) {
    throw Error(ErrorCode::kInternal, "nothing holds " + rest.front().text(), key);
  }
  return ops;
}

namespace {

class Planner {
 public:
  Planner(const Model& model, std::span<const TensorRule> rules, const PlanOptions& options)
      : model_(model), rules_(rules), options_(options) {
    end_layer_ = options.end_layer < 0 ? model.config().num_hidden_layers : options.end_layer;
  }

  Plan plan() {
    plan_.model = &model_;
    for (const TensorRule& rule : rules_) rows_.push_back({&rule, parse_layout(rule.layout)});
    // Rows in front of the first layer row, the layers one by one, and the rest.
    size_t first = 0;
    while (first < rows_.size() && !is_layer_pattern(rows_[first].rule->name)) {
      add_row(rows_[first++], -1);
    }
    for (int64_t l = options_.first_layer; l < end_layer_; ++l) {
      for (const Row& row : rows_) {
        if (is_layer_pattern(row.rule->name)) add_row(row, l);
      }
    }
    for (size_t i = first; i < rows_.size(); ++i) {
      if (!is_layer_pattern(rows_[i].rule->name)) add_row(rows_[i], -1);
    }
    for (const std::string& key : model_.keys()) {
      if (used_.count(key) == 0 && Model::canonical_of(key).auxiliary) {
        plan_.left_out.push_back(key);
      }
    }
    if (options_.must_use_all) check_all_used(model_, used_, options_.target_name);
    plan_.used = std::move(used_);
    return std::move(plan_);
  }

 private:
  struct Row {
    const TensorRule* rule;
    Layout layout;
  };

  /// Products that stand for a canonical tensor which the model has only in factored form.
  std::optional<RowProduct> product_for(const std::string& name) const {
    return options_.multiply_out ? find_product(model_, name) : std::nullopt;
  }

  bool applies(const Row& row, int64_t layer) const {
    bool any = false;
    for (const std::string& name : row.layout.tensors()) {
      if (find_canonical(name)->auxiliary) continue;
      if (!model_.has(canonical_key(name, layer)) && !product_for(name)) return false;
      any = true;
    }
    return any;
  }

  void add_row(const Row& row, int64_t layer) {
    if (!applies(row, layer)) return;
    const std::string name =
        with_layer(row.rule->name, layer < 0 ? layer : layer - options_.layer_offset);
    if (!names_.insert(name).second) return;  // an alternative spelling of the same tensor
    const bool per_rank = row.layout.uses_tensor_parallel() || options_.every_rank;
    const int64_t ranks = per_rank && !options_.only_rank ? options_.tp : 1;
    for (int64_t r = 0; r < ranks; ++r) {
      const int64_t rank = options_.only_rank.value_or(per_rank ? r : 0);
      add_tensor(row, layer, name, per_rank, rank);
    }
  }

  std::vector<CopyOp> term(const Layout& layout, int64_t layer, int64_t rank,
                           PlannedTensor& planned) {
    BindOptions bind;
    bind.tp = options_.tp;
    bind.rank = rank;
    bind.padded_sizes = options_.padded_sizes;
    const BoundLayout bound = bind_layout(layout, model_.sizes(), bind);
    planned.target.shape = bound.shape;
    std::vector<CopyOp> ops;
    int64_t filled = 0;
    for (const Piece& piece : bound.pieces) {
      const std::string key = canonical_key(piece.tensor, layer);
      used_.insert(key);
      if (!model_.has(key)) {
        if (const auto product = product_for(piece.tensor)) {
          planned.product = product;
          used_.insert({product->left, product->right});
          filled += piece.num_elements();
        }
        continue;
      }
      if (piece.num_elements() == 0) continue;
      for (CopyOp& op : plan_piece(model_, key, piece, planned.multiply)) ops.push_back(op);
      filled += piece.num_elements();
      planned.pieces.push_back(piece);
      planned.pieces.back().tensor = key;
    }
    planned.has_padding = filled != checked_num_elements(bound.shape).value();
    return ops;
  }

  void add_tensor(const Row& row, int64_t layer, const std::string& name, bool per_rank,
                  int64_t rank) {
    PlannedTensor planned;
    planned.target.name = name;
    planned.target.tp_rank = per_rank ? static_cast<int>(rank) : -1;
    planned.ops = term(row.layout, layer, rank, planned);
    if (!row.rule->plus.empty()) {
      planned.plus = term(parse_layout(row.rule->plus), layer, rank, planned);
    }
    if (row.rule->step == Step::kDivideByTp) planned.divide = static_cast<double>(options_.tp);
    const DType source = common_dtype(planned, row, layer);
    planned.target.dtype = options_.dtype(planned.target.shape, source);
    if (options_.quantization) planned.quantization = options_.quantization(row.rule->name);
    if (planned.quantization) planned.target.dtype = quantized_from(source);
    for (const std::vector<CopyOp>* ops : {&planned.ops, &planned.plus}) {
      for (const CopyOp& op : *ops) check_cast(op, planned);
    }
    plan_.tensors.push_back(std::move(planned));
  }

  const StoredTensor& stored(int index) const {
    return model_.checkpoint().tensors[static_cast<size_t>(index)];
  }

  void check_cast(const CopyOp& op, const PlannedTensor& planned) const {
    if (kernels::can_convert(stored(op.source).dtype, planned.target.dtype)) return;
    throw_usage(planned.target.name, "cannot cast " +
                                         std::string(dtype_name(stored(op.source).dtype)) + " to " +
                                         std::string(dtype_name(planned.target.dtype)));
  }

  /// Integers are made from the weights as they are stored.
  static DType quantized_from(DType source) {
    return source == DType::F16 || source == DType::BF16 ? source : DType::F32;
  }

  DType common_dtype(const PlannedTensor& planned, const Row& row, int64_t layer) const {
    std::optional<DType> common;
    const auto meet = [&](DType dtype) {
      if (!common) common = dtype;
      if (*common != dtype) common = DType::F32;
    };
    for (const CopyOp& op : planned.ops) meet(stored(op.source).dtype);
    for (const CopyOp& op : planned.plus) meet(stored(op.source).dtype);
    if (planned.product) {
      meet(stored(model_.pieces(planned.product->left).front().tensor).dtype);
    }
    if (!common) {
      // A rank that holds nothing but padding is of the same dtype as the others.
      for (const std::string& name : row.layout.tensors()) {
        const std::string key = canonical_key(name, layer);
        if (!model_.has(key)) continue;
        for (const SourcePiece& piece : model_.pieces(key)) meet(stored(piece.tensor).dtype);
      }
    }
    return common.value_or(DType::F32);
  }

  const Model& model_;
  std::span<const TensorRule> rules_;
  const PlanOptions& options_;
  int64_t end_layer_ = 0;
  std::vector<Row> rows_;
  std::set<std::string> used_, names_;
  Plan plan_;
};

int64_t& stride_of(CopyOp& op, Side side, int axis) {
  return side == Side::kSource ? op.box.src_strides[axis] : op.box.dst_strides[axis];
}

int64_t& offset_of(CopyOp& op, Side side) {
  return side == Side::kSource ? op.src_offset : op.dst_offset;
}

int64_t span_length(CopyOp& op, Side side) {
  int64_t length = 1;
  for (int a = 0; a < op.box.num_axes; ++a) {
    length += (op.box.extents[a] - 1) * stride_of(op, side, a);
  }
  return length;
}

/// Pushes sub-boxes of `op` whose span is at most `cap` where that is possible.
void cut(CopyOp op, Side side, int64_t cap, std::vector<CopyOp>& out) {
  const int64_t length = span_length(op, side);
  int slowest = -1;
  for (int a = 0; a < op.box.num_axes; ++a) {
    if (op.box.extents[a] > 1 && stride_of(op, side, a) > 0 &&
        (slowest < 0 || stride_of(op, side, a) > stride_of(op, side, slowest))) {
      slowest = a;
    }
  }
  if (length <= cap || slowest < 0) {
    out.push_back(op);
    return;
  }
  const int64_t stride = stride_of(op, side, slowest), extent = op.box.extents[slowest];
  const int64_t inner = length - (extent - 1) * stride;
  const int64_t step = cap > inner ? std::max<int64_t>(1, (cap - inner) / stride + 1) : 1;
  for (int64_t i = 0; i < extent; i += step) {
    CopyOp part = op;
    part.box.extents[slowest] = std::min(step, extent - i);
    part.src_offset += i * op.box.src_strides[slowest];
    part.dst_offset += i * op.box.dst_strides[slowest];
    cut(part, side, cap, out);
  }
}

}  // namespace

std::vector<OpGroup> group_ops(const std::vector<CopyOp>& ops, Side side, int64_t cap) {
  std::vector<CopyOp> parts;
  for (const CopyOp& op : ops) cut(op, side, cap, parts);
  std::stable_sort(parts.begin(), parts.end(), [&](const CopyOp& a, const CopyOp& b) {
    return side == Side::kSource ? a.src_offset < b.src_offset : a.dst_offset < b.dst_offset;
  });
  std::vector<OpGroup> groups;
  for (CopyOp& part : parts) {
    const int64_t lo = offset_of(part, side), hi = lo + span_length(part, side);
    const bool overlaps = !groups.empty() && lo < groups.back().hi;
    const bool fits = !groups.empty() && hi - groups.back().lo <= cap;
    // A gap of up to a quarter of the cap is cheaper to pass over than to break the group for.
    const bool near = !groups.empty() && lo - groups.back().hi <= cap / 4;
    if (overlaps || (fits && near)) {
      groups.back().hi = std::max(groups.back().hi, hi);
      groups.back().ops.push_back(part);
    } else {
      groups.push_back({lo, hi, {part}});
    }
  }
  return groups;
}

void check_all_used(const Model& model, const std::set<std::string>& used,
                    const std::string& target_name) {
  for (const std::string& key : model.keys()) {
    if (used.count(key) != 0 || Model::canonical_of(key).auxiliary) continue;
    throw_usage(target_name, "has no place for '" + key + "' of this model",
                "choose another target format");
  }
}

Plan make_plan(const Model& model, std::span<const TensorRule> rules, const PlanOptions& options) {
  return Planner(model, rules, options).plan();
}

}  // namespace llmctl::reshard
