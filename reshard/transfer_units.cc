#include "reshard/transfer_units.h"

#include <algorithm>
#include <numeric>
#include <tuple>

#include "formats/core/error.h"

namespace llmctl::reshard {

using formats::StoredTensor;

namespace {

/// A stretch that lies in one piece in source and target and is this long is moved on its own:
/// the disk takes it at full speed (measured: 256 KiB and above), whatever lies around it.
constexpr int64_t kRunBytes = int64_t{256} << 10;
/// Most bytes of a block that is a plain move: it stays in the cache between its copy, its digest
/// and its write, and is large enough for the disk.
constexpr int64_t kMoveBytes = int64_t{1} << 20;
/// Bytes between two reads that are cheaper to read along than to leave out.
constexpr uint64_t kGapBytes = uint64_t{16} << 10;
constexpr int64_t kPage = 4096;

struct Axis {
  int64_t extent, src_stride, dst_stride;
};

/// Without axes of one element, the source's slowest axis first, and axes that are one run in both
/// tensors merged.
CopyOp simplest(const CopyOp& op) {
  std::vector<Axis> axes;
  for (int a = 0; a < op.box.num_axes; ++a) {
    if (op.box.extents[a] != 1) {
      axes.push_back({op.box.extents[a], op.box.src_strides[a], op.box.dst_strides[a]});
    }
  }
  std::stable_sort(axes.begin(), axes.end(),
                   [](const Axis& a, const Axis& b) { return a.src_stride > b.src_stride; });
  std::vector<Axis> merged;
  for (const Axis& axis : axes) {
    Axis* outer = merged.empty() ? nullptr : &merged.back();
    if (outer != nullptr && outer->src_stride == axis.extent * axis.src_stride &&
        outer->dst_stride == axis.extent * axis.dst_stride) {
      *outer = {outer->extent * axis.extent, axis.src_stride, axis.dst_stride};
    } else {
      merged.push_back(axis);
    }
  }
  if (merged.empty()) merged.push_back({1, 1, 1});
  CopyOp result = op;
  result.box = {};
  for (const Axis& axis : merged) {
    const int a = result.box.num_axes++;
    result.box.extents[a] = axis.extent;
    result.box.src_strides[a] = axis.src_stride;
    result.box.dst_strides[a] = axis.dst_stride;
  }
  return result;
}

/// Elements from the first to behind the last that the op touches.
int64_t span(const CopyOp& op, Side side) {
  const int64_t* strides = side == Side::kSource ? op.box.src_strides : op.box.dst_strides;
  int64_t length = 1;
  for (int a = 0; a < op.box.num_axes; ++a) length += (op.box.extents[a] - 1) * strides[a];
  return length;
}

bool is_move(const CopyOp& op) {
  return op.box.num_axes == 1 && op.box.src_strides[0] == 1 && op.box.dst_strides[0] == 1;
}

/// Elements that lie in one piece on both sides.
int64_t run_of(const CopyOp& op) {
  const int last = op.box.num_axes - 1;
  const bool contiguous = op.box.src_strides[last] == 1 && op.box.dst_strides[last] == 1;
  return contiguous ? op.box.extents[last] : 1;
}

/// Indices [lo, hi) along the first axis.
CopyOp cut_first(const CopyOp& op, int64_t lo, int64_t hi) {
  CopyOp part = op;
  part.box.extents[0] = hi - lo;
  part.src_offset += lo * op.box.src_strides[0];
  part.dst_offset += lo * op.box.dst_strides[0];
  return part;
}

void move_slowest_first(CopyOp& op, Side side) {
  const int64_t* strides = side == Side::kSource ? op.box.src_strides : op.box.dst_strides;
  const int slowest =
      static_cast<int>(std::max_element(strides, strides + op.box.num_axes) - strides);
  for (int64_t* row : {op.box.extents, op.box.src_strides, op.box.dst_strides}) {
    std::rotate(row, row + slowest, row + slowest + 1);
  }
}

/// Splits the first axis into one of `extent` indices and the rest. False when that cannot be.
bool split_first(CopyOp& op, int64_t extent) {
  kernels::Box& box = op.box;
  if (box.extents[0] == extent) return true;
  if (box.extents[0] % extent != 0 || box.num_axes == kernels::kMaxBoxAxes) return false;
  const int64_t inner = box.extents[0] / extent;
  for (int64_t* row : {box.extents, box.src_strides, box.dst_strides}) {
    std::copy_backward(row, row + box.num_axes, row + box.num_axes + 1);
  }
  ++box.num_axes;
  box.extents[0] = extent;
  box.extents[1] = inner;
  box.src_strides[0] *= inner;
  box.dst_strides[0] *= inner;
  return true;
}

struct Stretch {
  uint64_t place;  // file or tensor
  uint64_t lo, hi;

  friend bool operator<(const Stretch& a, const Stretch& b) {
    return std::tie(a.place, a.lo) < std::tie(b.place, b.lo);
  }
};

bool are_disjoint(std::vector<Stretch>& stretches) {
  std::sort(stretches.begin(), stretches.end());
  for (size_t i = 1; i < stretches.size(); ++i) {
    const Stretch &a = stretches[i - 1], &b = stretches[i];
    if (a.place == b.place && b.lo < a.hi) return false;
  }
  return true;
}

class Sets {
 public:
  explicit Sets(size_t count) : leader_(count) {
    std::iota(leader_.begin(), leader_.end(), size_t{0});
  }
  size_t find(size_t i) {
    while (leader_[i] != i) i = leader_[i] = leader_[leader_[i]];
    return i;
  }
  void unite(size_t a, size_t b) {
    leader_[std::max(find(a), find(b))] = std::min(find(a), find(b));
  }

 private:
  std::vector<size_t> leader_;
};

/// Unites the items whose stretches overlap.
void unite_overlapping(std::vector<std::pair<Stretch, size_t>> items, Sets& sets) {
  std::sort(items.begin(), items.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  uint64_t hi = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    const Stretch& stretch = items[i].first;
    if (i > 0 && items[i - 1].first.place == stretch.place && stretch.lo < hi) {
      sets.unite(items[i].second, items[i - 1].second);
      hi = std::max(hi, stretch.hi);
    } else {
      hi = stretch.hi;
    }
  }
}

}  // namespace

const StoredTensor& TransferUnits::stored(int index) const {
  return plan_.model->checkpoint().tensors[static_cast<size_t>(index)];
}

int64_t TransferUnits::source_width(const UnitOp& op) const {
  return static_cast<int64_t>(dtype_bytes(stored(op.op.source).dtype));
}

int64_t TransferUnits::target_width(size_t tensor) const {
  return static_cast<int64_t>(dtype_bytes(plan_.tensors[tensor].target.dtype));
}

bool TransferUnits::in_memory(size_t tensor) const {
  return options_.in_memory && options_.in_memory(tensor);
}

uint64_t TransferUnits::phase(size_t tensor, uint64_t offset_bytes) const {
  return options_.phase ? options_.phase(tensor, offset_bytes) : offset_bytes % kPage;
}

TransferUnits::TransferUnits(const Plan& plan, UnitOptions options)
    : plan_(plan), options_(std::move(options)) {
  Ops ops;
  for (size_t i = 0; i < plan.tensors.size(); ++i) {
    const PlannedTensor& tensor = plan.tensors[i];
    const bool steps = tensor.multiply != 1 || tensor.divide != 1;
    if (tensor.product || !tensor.plus.empty() || (steps && in_memory(i))) {
      add_tensor(i);
      continue;
    }
    for (const CopyOp& op : tensor.ops) ops.push_back({i, simplest(op)});
  }
  for (Ops& cluster : clusters_of(std::move(ops))) add_cluster(std::move(cluster));
  add_zeros();
  std::stable_sort(units_.begin(), units_.end(),
                   [](const Unit& a, const Unit& b) { return a.first_byte < b.first_byte; });
  unite_small();
  for (const Unit& unit : units_) {
    most_staged_bytes_ = std::max(most_staged_bytes_, unit.staged_bytes);
    if (unit.kind != Unit::Kind::kStreamed) continue;
    const Transfer laid_out = transfer(unit);
    uint64_t read_bytes = 0;
    for (const SourceRead& read : laid_out.reads) read_bytes += read_room(read.hi - read.lo);
    most_read_bytes_ = std::max(most_read_bytes_, read_bytes);
    for (const TargetBlock& block : laid_out.blocks) {
      if (in_memory(block.tensor)) continue;
      most_block_bytes_ =
          std::max(most_block_bytes_,
                   static_cast<uint64_t>((block.hi - block.lo) * target_width(block.tensor)));
    }
  }
}

std::vector<UnitOp> TransferUnits::ops(const Unit& unit) const {
  Ops ops;
  for (const Unit::Part& part : unit.parts) {
    for (const UnitOp& op : clusters_[part.cluster]) {
      ops.push_back(part.hi < 0 ? op : UnitOp{op.tensor, cut_first(op.op, part.lo, part.hi)});
    }
  }
  return ops;
}

/// Plain moves in blocks that end where the target's pages do; long runs one by one.
void TransferUnits::explode(const UnitOp& op, Ops& out) const {
  const CopyOp simple = simplest(op.op);
  const int64_t width = target_width(op.tensor);
  if (in_memory(op.tensor) || run_of(simple) * width < kRunBytes) {
    out.push_back({op.tensor, simple});
    return;
  }
  if (!is_move(simple)) {
    for (int64_t i = 0; i < simple.box.extents[0]; ++i) {
      explode({op.tensor, cut_first(simple, i, i + 1)}, out);
    }
    return;
  }
  const int64_t end = simple.box.extents[0];
  const auto start = phase(op.tensor, static_cast<uint64_t>(simple.dst_offset * width));
  const int64_t most = kMoveBytes / width;
  for (int64_t lo = 0, hi = 0; lo < end; lo = hi) {
    hi = lo == 0 ? most - static_cast<int64_t>(start) / width : lo + most;
    // A short rest goes along.
    if (end - hi < most / 4) hi = end;
    out.push_back({op.tensor, cut_first(simple, lo, hi)});
  }
}

Transfer TransferUnits::lay_out(const Ops& ops) const {
  Ops parts;
  for (const UnitOp& op : ops) explode(op, parts);
  Transfer result;
  std::vector<std::pair<Stretch, size_t>> sources;
  for (size_t i = 0; i < parts.size(); ++i) {
    const StoredTensor& tensor = stored(parts[i].op.source);
    const auto width = static_cast<uint64_t>(source_width(parts[i]));
    const uint64_t lo = tensor.offset_bytes + static_cast<uint64_t>(parts[i].op.src_offset) * width;
    const auto length = static_cast<uint64_t>(span(parts[i].op, Side::kSource));
    sources.push_back({{static_cast<uint64_t>(tensor.file), lo, lo + length * width}, i});
  }
  std::sort(sources.begin(), sources.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  for (const auto& [stretch, i] : sources) {
    const CopyOp& op = parts[i].op;
    SourceRead* last = result.reads.empty() ? nullptr : &result.reads.back();
    if (last == nullptr || static_cast<uint64_t>(last->file) != stretch.place ||
        stretch.lo > last->hi + kGapBytes) {
      last = &result.reads.emplace_back();
      *last = {static_cast<int>(stretch.place), stretch.lo, stretch.hi, {}};
    }
    last->hi = std::max(last->hi, stretch.hi);
    const SourceSpan wanted{op.source, op.src_offset, op.src_offset + span(op, Side::kSource)};
    // Tensors that share their bytes are rare: the last spans are enough to look at.
    SourceSpan* known = nullptr;
    for (SourceSpan& s : last->spans) {
      if (s.source == wanted.source && wanted.lo <= s.hi) known = &s;
    }
    if (known != nullptr) {
      known->hi = std::max(known->hi, wanted.hi);
    } else {
      last->spans.push_back(wanted);
    }
  }
  std::sort(parts.begin(), parts.end(), [](const UnitOp& a, const UnitOp& b) {
    return std::tie(a.tensor, a.op.dst_offset) < std::tie(b.tensor, b.op.dst_offset);
  });
  for (const UnitOp& part : parts) {
    const int64_t lo = part.op.dst_offset, hi = lo + span(part.op, Side::kTarget);
    TargetBlock* last = result.blocks.empty() ? nullptr : &result.blocks.back();
    const bool joins =
        last != nullptr && last->tensor == part.tensor && !in_memory(part.tensor) &&
        (lo < last->hi ||
         (lo == last->hi && (hi - last->lo) * target_width(part.tensor) <= kMoveBytes / 2));
    if (joins) {
      last->hi = std::max(last->hi, hi);
      last->ops.push_back(part.op);
    } else {
      result.blocks.push_back({part.tensor, lo, hi, {part.op}});
    }
  }
  return result;
}

/// Ops whose stretches of a source or of a target interleave belong together.
std::vector<TransferUnits::Ops> TransferUnits::clusters_of(Ops ops) const {
  Sets sets(ops.size());
  std::vector<std::pair<Stretch, size_t>> sources, targets;
  for (size_t i = 0; i < ops.size(); ++i) {
    const StoredTensor& tensor = stored(ops[i].op.source);
    const auto width = static_cast<uint64_t>(source_width(ops[i]));
    const uint64_t lo = tensor.offset_bytes + static_cast<uint64_t>(ops[i].op.src_offset) * width;
    const auto length = static_cast<uint64_t>(span(ops[i].op, Side::kSource));
    sources.push_back({{static_cast<uint64_t>(tensor.file), lo, lo + length * width}, i});
    if (in_memory(ops[i].tensor)) continue;
    const auto first = static_cast<uint64_t>(ops[i].op.dst_offset);
    const auto end = first + static_cast<uint64_t>(span(ops[i].op, Side::kTarget));
    targets.push_back({{ops[i].tensor, first, end}, i});
  }
  unite_overlapping(std::move(sources), sets);
  unite_overlapping(std::move(targets), sets);
  std::map<size_t, size_t> index;
  std::vector<Ops> clusters;
  for (size_t i = 0; i < ops.size(); ++i) {
    const auto [it, fresh] = index.insert({sets.find(i), clusters.size()});
    if (fresh) clusters.emplace_back();
    clusters[it->second].push_back(ops[i]);
  }
  return clusters;
}

/// More tensors on either side want larger slabs, so that the piece of each is large.
uint64_t TransferUnits::slab_for(const Ops& ops) const {
  std::vector<size_t> targets, sources;
  for (const UnitOp& op : ops) {
    targets.push_back(op.tensor);
    sources.push_back(static_cast<size_t>(op.op.source));
  }
  uint64_t most = 1;
  for (std::vector<size_t>* tensors : {&targets, &sources}) {
    std::sort(tensors->begin(), tensors->end());
    const auto end = std::unique(tensors->begin(), tensors->end());
    most = std::max(most, static_cast<uint64_t>(end - tensors->begin()));
  }
  return std::clamp(most << 20, options_.slab_bytes,
                    std::max(options_.slab_bytes, options_.most_slab_bytes));
}

uint64_t TransferUnits::first_byte(const Ops& ops) const {
  uint64_t first = UINT64_MAX;
  for (const UnitOp& op : ops) {
    const StoredTensor& source = stored(op.op.source);
    // Files in order, then offsets: 2^40 is past the size of any one shard.
    first = std::min(first, (static_cast<uint64_t>(source.file) << 40) + source.offset_bytes +
                                static_cast<uint64_t>(op.op.src_offset * source_width(op)));
  }
  return first;
}

std::vector<TargetSpan> TransferUnits::target_spans(const Ops& ops) {
  std::vector<TargetSpan> spans;
  for (const UnitOp& op : ops) {
    spans.push_back({op.tensor, op.op.dst_offset, op.op.dst_offset + span(op.op, Side::kTarget)});
  }
  std::sort(spans.begin(), spans.end(), [](const TargetSpan& a, const TargetSpan& b) {
    return std::tie(a.tensor, a.lo) < std::tie(b.tensor, b.lo);
  });
  std::vector<TargetSpan> merged;
  for (const TargetSpan& s : spans) {
    if (!merged.empty() && merged.back().tensor == s.tensor && s.lo <= merged.back().hi) {
      merged.back().hi = std::max(merged.back().hi, s.hi);
    } else {
      merged.push_back(s);
    }
  }
  return merged;
}

void TransferUnits::add_cluster(Ops ops) {
  for (UnitOp& op : ops) op.op = simplest(op.op);
  const uint64_t slab = slab_for(ops);
  uint64_t wanted = 0;
  for (const UnitOp& op : ops) {
    wanted += static_cast<uint64_t>(span(op.op, Side::kSource) * source_width(op));
  }
  // Replication counts the source several times here, so the bound is only a cheap first look.
  if (wanted <= slab * std::max<uint64_t>(1, ops.size())) {
    const Transfer whole = lay_out(ops);
    uint64_t bytes = 0, most = 0;
    for (const SourceRead& read : whole.reads) bytes += read.hi - read.lo;
    for (const TargetBlock& block : whole.blocks) {
      if (in_memory(block.tensor)) continue;
      most =
          std::max(most, static_cast<uint64_t>((block.hi - block.lo) * target_width(block.tensor)));
    }
    if (bytes <= slab && most <= 2 * slab) {
      clusters_.push_back(std::move(ops));
      add_streamed(whole, {clusters_.size() - 1, 0, -1});
      return;
    }
  }
  if (add_cut(ops, Side::kSource) || add_cut(ops, Side::kTarget)) return;
  if (std::all_of(ops.begin(), ops.end(), [](const UnitOp& op) { return is_move(op.op); })) {
    if (add_cut_anywhere(ops)) return;
  }
  if (add_runs(ops)) return;
  add_staged(std::move(ops));
}

/// Cuts all ops at the same indices of their slowest axes. That is right where the cuts are apart
/// in every source and every target, which is looked up, not derived.
bool TransferUnits::add_cut(const Ops& ops, Side side) {
  Ops turned = ops;
  int64_t extent = 0;
  for (UnitOp& op : turned) {
    move_slowest_first(op.op, side);
    const int64_t own = op.op.box.extents[0];
    if (op.op.box.num_axes > 1 && (extent == 0 || own < extent)) extent = own;
  }
  if (extent == 0) extent = turned.front().op.box.extents[0];
  if (extent <= 1) return false;
  uint64_t bytes = 0;
  std::vector<Stretch> stretches;
  for (UnitOp& op : turned) {
    if (!split_first(op.op, extent)) return false;
    const StoredTensor& tensor = stored(op.op.source);
    const uint64_t lo =
        tensor.offset_bytes + static_cast<uint64_t>(op.op.src_offset * source_width(op));
    stretches.push_back(
        {static_cast<uint64_t>(tensor.file), lo,
         lo + static_cast<uint64_t>(span(op.op, Side::kSource) * source_width(op))});
  }
  std::sort(stretches.begin(), stretches.end());
  for (size_t i = 0, last = 0; i < stretches.size(); ++i) {
    const Stretch& s = stretches[i];
    if (i == 0 || s.place != stretches[last].place || s.lo >= stretches[last].hi) {
      bytes += s.hi - s.lo;
      last = i;
    } else if (s.hi > stretches[last].hi) {
      bytes += s.hi - stretches[last].hi;
      last = i;
    }
  }
  const uint64_t slab = slab_for(ops);
  const double row_bytes = static_cast<double>(bytes) / static_cast<double>(extent);
  auto step = std::max<int64_t>(1, static_cast<int64_t>(static_cast<double>(slab) / row_bytes));
  // Cuts fall on pages of the first target where its rows allow that.
  int64_t first = step;
  if (!in_memory(turned.front().tensor)) {
    const UnitOp& op = turned.front();
    const int64_t row = op.op.box.dst_strides[0] * target_width(op.tensor);
    const int64_t period = kPage / std::gcd(row % kPage, kPage);
    if (step > period) step -= step % period;
    auto at = static_cast<int64_t>(
        phase(op.tensor, static_cast<uint64_t>(op.op.dst_offset * target_width(op.tensor))));
    for (first = 0; first < period && at % kPage != 0; ++first) at += row % kPage;
    if (first == 0 || first >= period) {
      first = step;
    } else if (step > period) {
      first += step - period;
    }
  }
  std::vector<Stretch> sources, targets;
  std::vector<Transfer> transfers;
  std::vector<Unit::Part> parts;
  uint64_t most = 0;
  for (int64_t lo = 0, hi = 0; lo < extent; lo = hi) {
    hi = std::min(extent, lo == 0 ? first : lo + step);
    Ops cut;
    for (const UnitOp& op : turned) cut.push_back({op.tensor, cut_first(op.op, lo, hi)});
    Transfer transfer = lay_out(cut);
    uint64_t read_bytes = 0;
    for (const SourceRead& read : transfer.reads) {
      for (const SourceSpan& s : read.spans) {
        const StoredTensor& tensor = stored(s.source);
        const uint64_t width = dtype_bytes(tensor.dtype);
        sources.push_back({static_cast<uint64_t>(s.source), static_cast<uint64_t>(s.lo),
                           static_cast<uint64_t>(s.hi)});
        read_bytes += static_cast<uint64_t>(s.hi - s.lo) * width;
      }
    }
    most = std::max(most, read_bytes);
    for (const TargetBlock& block : transfer.blocks) {
      if (in_memory(block.tensor)) continue;
      targets.push_back(
          {block.tensor, static_cast<uint64_t>(block.lo), static_cast<uint64_t>(block.hi)});
      most = std::max(
          most, static_cast<uint64_t>((block.hi - block.lo) * target_width(block.tensor)) / 2);
    }
    transfer.blocks.shrink_to_fit();
    transfers.push_back(std::move(transfer));
    parts.push_back({clusters_.size(), lo, hi});
  }
  if (!are_disjoint(sources) || !are_disjoint(targets)) return false;
  if (most > 2 * slab) {
    // Even one index is too much: each is a cluster, or several, of its own.
    if (step > 1) return false;
    for (int64_t i = 0; i < extent; ++i) {
      Ops row;
      for (const UnitOp& op : turned) row.push_back({op.tensor, cut_first(op.op, i, i + 1)});
      for (Ops& cluster : clusters_of(std::move(row))) add_cluster(std::move(cluster));
    }
    return true;
  }
  clusters_.push_back(std::move(turned));
  for (size_t i = 0; i < parts.size(); ++i) add_streamed(transfers[i], parts[i]);
  return true;
}

/// Plain moves out of one stretch of a file to several places, which need not be of one length.
bool TransferUnits::add_cut_anywhere(const Ops& ops) {
  std::map<std::pair<int, int64_t>, Ops> slabs;
  for (const UnitOp& op : ops) {
    const int64_t step = static_cast<int64_t>(slab_for(ops)) / source_width(op);
    const int64_t end = op.op.src_offset + op.op.box.extents[0];
    for (int64_t lo = op.op.src_offset, hi = 0; lo < end; lo = hi) {
      hi = std::min(end, (lo / step + 1) * step);
      slabs[{op.op.source, lo / step}].push_back(
          {op.tensor, cut_first(op.op, lo - op.op.src_offset, hi - op.op.src_offset)});
    }
  }
  for (auto& [where, slab] : slabs) {
    const Transfer transfer = lay_out(slab);
    clusters_.push_back(std::move(slab));
    add_streamed(transfer, {clusters_.size() - 1, 0, -1});
  }
  return true;
}

/// Where everything moves in long runs, each of them can go its own way.
bool TransferUnits::add_runs(const Ops& ops) {
  Ops runs;
  for (const UnitOp& op : ops) {
    if (run_of(op.op) * target_width(op.tensor) < kRunBytes) return false;
    const size_t before = runs.size();
    explode(op, runs);
    if (op.op.box.num_axes == 1 && runs.size() == before + 1 && ops.size() == 1) return false;
  }
  for (Ops& cluster : clusters_of(std::move(runs))) {
    if (cluster.size() == ops.size()) return false;
    add_cluster(std::move(cluster));
  }
  return true;
}

void TransferUnits::add_streamed(const Transfer& transfer, Unit::Part part) {
  Unit unit;
  unit.parts.push_back(part);
  unit.first_byte = UINT64_MAX;
  for (const SourceRead& read : transfer.reads) {
    unit.source_bytes += read.hi - read.lo;
    unit.first_byte = std::min(unit.first_byte, (static_cast<uint64_t>(read.file) << 40) + read.lo);
  }
  for (const TargetBlock& block : transfer.blocks) {
    if (plan_.tensors[block.tensor].has_padding) {
      covered_[block.tensor].push_back({block.tensor, block.lo, block.hi});
    }
  }
  units_.push_back(std::move(unit));
}

void TransferUnits::add_staged(Ops ops) {
  Unit unit;
  unit.kind = Unit::Kind::kStaged;
  for (const TargetSpan& s : target_spans(ops)) {
    if (!in_memory(s.tensor)) {
      unit.staged_bytes +=
          static_cast<uint64_t>((s.hi - s.lo) * target_width(s.tensor)) + 2 * kPage;
    }
    if (plan_.tensors[s.tensor].has_padding) covered_[s.tensor].push_back(s);
  }
  unit.first_byte = first_byte(ops);
  if (unit.staged_bytes <= options_.staged_bytes) {
    clusters_.push_back(std::move(ops));
    unit.parts.push_back({clusters_.size() - 1, 0, -1});
    units_.push_back(std::move(unit));
    return;
  }
  // Blocks of each target for which the source is read again.
  std::map<size_t, std::vector<CopyOp>> by_tensor;
  for (const UnitOp& op : ops) by_tensor[op.tensor].push_back(op.op);
  for (const auto& [tensor, tensor_ops] : by_tensor) {
    const int64_t cap =
        std::max<int64_t>(1, static_cast<int64_t>(options_.staged_bytes) / target_width(tensor));
    for (const OpGroup& group : group_ops(tensor_ops, Side::kTarget, cap)) {
      Unit block = unit;
      Ops cut;
      for (const CopyOp& op : group.ops) cut.push_back({tensor, op});
      block.staged_bytes = 0;
      for (const TargetSpan& s : target_spans(cut)) {
        block.staged_bytes +=
            static_cast<uint64_t>((s.hi - s.lo) * target_width(tensor)) + 2 * kPage;
      }
      clusters_.push_back(std::move(cut));
      block.parts = {{clusters_.size() - 1, 0, -1}};
      units_.push_back(std::move(block));
    }
  }
}

void TransferUnits::add_tensor(size_t tensor) {
  const PlannedTensor& planned = plan_.tensors[tensor];
  Unit unit;
  unit.kind = Unit::Kind::kTensor;
  unit.tensor = tensor;
  unit.staged_bytes = in_memory(tensor) || planned.product ? 0 : planned.num_bytes();
  Ops ops;
  for (const CopyOp& op : planned.ops) ops.push_back({tensor, op});
  unit.first_byte = first_byte(ops);
  units_.push_back(std::move(unit));
}

void TransferUnits::add_zeros() {
  for (size_t i = 0; i < plan_.tensors.size(); ++i) {
    const PlannedTensor& tensor = plan_.tensors[i];
    if (!tensor.has_padding || tensor.product || !tensor.plus.empty() || in_memory(i)) continue;
    std::vector<TargetSpan>& covered = covered_[i];
    std::sort(covered.begin(), covered.end(),
              [](const TargetSpan& a, const TargetSpan& b) { return a.lo < b.lo; });
    const int64_t end = checked_num_elements(tensor.target.shape).value();
    covered.push_back({i, end, end});
    int64_t lo = 0;
    for (const TargetSpan& s : covered) {
      if (s.lo > lo) {
        Unit unit;
        unit.kind = Unit::Kind::kZeros;
        unit.tensor = i;
        unit.lo = lo;
        unit.hi = s.lo;
        unit.first_byte = UINT64_MAX;
        units_.push_back(unit);
      }
      lo = std::max(lo, s.hi);
    }
  }
  covered_.clear();
}

/// Small neighbours become one unit: a thousand biases are then a few reads.
void TransferUnits::unite_small() {
  std::vector<Unit> united;
  for (Unit& unit : units_) {
    Unit* last = united.empty() ? nullptr : &united.back();
    if (last != nullptr && last->kind == Unit::Kind::kStreamed &&
        unit.kind == Unit::Kind::kStreamed &&
        last->source_bytes + unit.source_bytes <= options_.slab_bytes / 4 &&
        last->first_byte >> 40 == unit.first_byte >> 40) {
      last->source_bytes += unit.source_bytes;
      last->parts.insert(last->parts.end(), unit.parts.begin(), unit.parts.end());
    } else {
      united.push_back(std::move(unit));
    }
  }
  units_ = std::move(united);
}

}  // namespace llmctl::reshard
