#include "reshard/unit_parts.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <tuple>

namespace llmctl::reshard {
namespace {

/// What a unit reads and how much it writes.
struct Work {
  std::vector<SourceSpan> spans;
  uint64_t bytes = 0;
};

void add_grouped(const std::vector<CopyOp>& ops, const Plan& plan, uint64_t slab_bytes,
                 Work& work) {
  std::map<int, std::vector<CopyOp>> by_source;
  for (const CopyOp& op : ops) by_source[op.source].push_back(op);
  for (const auto& [source, source_ops] : by_source) {
    const DType dtype = plan.model->checkpoint().tensors[static_cast<size_t>(source)].dtype;
    const auto cap = static_cast<int64_t>(slab_bytes / dtype_bytes(dtype));
    for (const OpGroup& group : group_ops(source_ops, Side::kSource, cap)) {
      work.spans.push_back({source, group.lo, group.hi});
    }
  }
}

Work work_of(const Plan& plan, const TransferUnits& units, const Unit& unit, uint64_t slab_bytes) {
  Work work;
  const auto target_bytes = [&](size_t tensor, int64_t lo, int64_t hi) {
    return static_cast<uint64_t>(hi - lo) * dtype_bytes(plan.tensors[tensor].target.dtype);
  };
  switch (unit.kind) {
    case Unit::Kind::kStreamed: {
      const Transfer transfer = units.transfer(unit);
      for (const SourceRead& read : transfer.reads) {
        work.spans.insert(work.spans.end(), read.spans.begin(), read.spans.end());
      }
      for (const TargetBlock& block : transfer.blocks) {
        work.bytes += target_bytes(block.tensor, block.lo, block.hi);
      }
      break;
    }
    case Unit::Kind::kStaged: {
      const std::vector<UnitOp> ops = units.ops(unit);
      for (const TargetSpan& span : TransferUnits::target_spans(ops)) {
        work.bytes += target_bytes(span.tensor, span.lo, span.hi);
      }
      std::vector<CopyOp> copies;
      for (const UnitOp& op : ops) copies.push_back(op.op);
      add_grouped(copies, plan, slab_bytes, work);
      break;
    }
    case Unit::Kind::kTensor: {
      const PlannedTensor& tensor = plan.tensors[unit.tensor];
      work.bytes += tensor.num_bytes();
      if (tensor.product) break;
      add_grouped(tensor.ops, plan, slab_bytes, work);
      add_grouped(tensor.plus, plan, slab_bytes, work);
      break;
    }
    case Unit::Kind::kZeros:
      work.bytes += target_bytes(unit.tensor, unit.lo, unit.hi);
      break;
  }
  return work;
}

struct Reading {
  SourceSpan span;
  size_t unit;
};

/// For each unit the first of those that it shares bytes of the source with, over any number of
/// steps.
std::vector<size_t> leaders_of(std::vector<Reading> readings, size_t num_units) {
  std::vector<size_t> leaders(num_units);
  std::iota(leaders.begin(), leaders.end(), size_t{0});
  const auto find = [&](size_t i) {
    while (leaders[i] != i) i = leaders[i] = leaders[leaders[i]];
    return i;
  };
  std::sort(readings.begin(), readings.end(), [](const Reading& a, const Reading& b) {
    return std::tie(a.span.source, a.span.lo) < std::tie(b.span.source, b.span.lo);
  });
  const Reading* last = nullptr;  // the one that reaches furthest
  for (const Reading& reading : readings) {
    const bool overlaps = last != nullptr && last->span.source == reading.span.source &&
                          reading.span.lo < last->span.hi;
    if (overlaps) {
      const size_t a = find(last->unit), b = find(reading.unit);
      leaders[std::max(a, b)] = std::min(a, b);
    }
    if (!overlaps || reading.span.hi > last->span.hi) last = &reading;
  }
  for (size_t i = 0; i < num_units; ++i) leaders[i] = find(i);
  return leaders;
}

}  // namespace

UnitParts::UnitParts(const Plan& plan, const TransferUnits& units, uint64_t slab_bytes,
                     int num_parts, const WholeReplicas* replicas)
    : parts_(units.units().size()) {
  std::vector<Reading> readings;
  std::vector<uint64_t> bytes(parts_.size());
  for (size_t i = 0; i < parts_.size(); ++i) {
    Work work = work_of(plan, units, units.units()[i], slab_bytes);
    bytes[i] = work.bytes;
    for (const SourceSpan& span : work.spans) {
      const size_t copies = replicas == nullptr ? 0 : replicas->of(span.source).size();
      const DType dtype = plan.model->checkpoint().tensors[static_cast<size_t>(span.source)].dtype;
      bytes[i] += static_cast<uint64_t>(span.hi - span.lo) * dtype_bytes(dtype) * (1 + copies);
      if (copies > 0) read_with_replicas_.push_back(span);
      readings.push_back({span, i});
    }
  }
  const std::vector<size_t> leaders = leaders_of(std::move(readings), parts_.size());
  for (size_t i = 0; i < parts_.size(); ++i) {
    if (leaders[i] != i) bytes[leaders[i]] += bytes[i];
  }
  uint64_t total = 0;
  for (size_t i = 0; i < parts_.size(); ++i) total += leaders[i] == i ? bytes[i] : 0;
  // A unit goes where its middle falls.
  uint64_t before = 0;
  for (size_t i = 0; i < parts_.size(); ++i) {
    if (leaders[i] != i) {
      parts_[i] = parts_[leaders[i]];
      continue;
    }
    const double middle = static_cast<double>(before) + static_cast<double>(bytes[i]) / 2;
    const double part = middle / std::max(1.0, static_cast<double>(total)) * num_parts;
    parts_[i] = std::min(num_parts - 1, static_cast<int>(part));
    before += bytes[i];
  }
}

}  // namespace llmctl::reshard
