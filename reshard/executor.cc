#include "reshard/executor.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>

#include "formats/core/aligned_buffer.h"
#include "formats/core/cancel.h"
#include "formats/core/error.h"
#include "formats/core/thread_pool.h"
#include "reshard/product.h"
#include "reshard/source_files.h"
#include "reshard/transfer_units.h"
#include "reshard/unit_parts.h"
#include "reshard/whole_replicas.h"

namespace llmctl::reshard {
namespace {

using formats::StoredTensor;

/// Bytes of one read for a transpose, or of one product: large enough for the disk, small enough to
/// stay in cache for the copy.
constexpr int64_t kSlabBytes = int64_t{4} << 20;
constexpr uint64_t kMiB = uint64_t{1} << 20;
/// Bytes of a replica that are read at a time.
constexpr uint64_t kReplicaBytes = kMiB;

uint64_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  uint64_t total = 0, resident = 0;
  statm >> total >> resident;
  return resident * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

/// How the memory that a job may take is divided.
struct Budget {
  int workers = 1;
  uint64_t slab_bytes = 4 * kMiB, most_slab_bytes = 8 * kMiB;
  uint64_t staged_bytes = 0;

  Budget(int jobs, uint64_t max_memory, const std::optional<UnitSizes>& given = {})
      : workers(std::max(1, jobs)) {
    // The process, its plan and what the libraries take while running are there already.
    const uint64_t taken = resident_bytes() + 8 * kMiB;
    uint64_t free = max_memory > taken ? max_memory - taken : 0;
    free = std::max(free, 8 * kMiB);
    // A worker holds a slab and a block of it, which a cast can make as large again.
    const auto needed = [&] { return static_cast<uint64_t>(workers) * 3 * most_slab_bytes; };
    while (needed() > free / 4 * 3 && most_slab_bytes > kMiB) {
      most_slab_bytes /= 2;
      slab_bytes = std::min(slab_bytes, most_slab_bytes);
    }
    while (needed() > free / 4 * 3 && workers > 1) --workers;
    staged_bytes = free > needed() ? free - needed() : 2 * kMiB;
    if (given) {
      slab_bytes = given->slab_bytes;
      most_slab_bytes = given->most_slab_bytes;
      staged_bytes = given->staged_bytes;
    }
  }
};

/// Memory for transposed tensors: a limit over all workers, and pages that are used again, because
/// fresh ones are what costs.
class StagingPool {
 public:
  explicit StagingPool(uint64_t most_bytes) : most_bytes_(most_bytes) {}

  class Lease {
   public:
    Lease(StagingPool& pool, AlignedBuffer buffer) : pool_(pool), buffer_(std::move(buffer)) {}
    ~Lease() { pool_.give_back(std::move(buffer_)); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    std::byte* data() { return buffer_.data(); }

   private:
    StagingPool& pool_;
    AlignedBuffer buffer_;
  };

  /// Waits until there is room. What is larger than the pool gets its memory when nobody else has
  /// any.
  Lease take(uint64_t bytes) {
    std::unique_lock lock(mutex_);
    room_.wait(lock, [&] { return leased_bytes_ == 0 || leased_bytes_ + bytes <= most_bytes_; });
    for (auto it = idle_.begin(); it != idle_.end(); ++it) {
      if (it->size() < bytes || it->size() / 2 > bytes) continue;
      if (leased_bytes_ + it->size() > most_bytes_ && leased_bytes_ > 0) continue;
      AlignedBuffer buffer = std::move(*it);
      idle_.erase(it);
      idle_bytes_ -= buffer.size();
      leased_bytes_ += buffer.size();
      return {*this, std::move(buffer)};
    }
    while (!idle_.empty() && leased_bytes_ + idle_bytes_ + bytes > most_bytes_) {
      idle_bytes_ -= idle_.back().size();
      idle_.pop_back();
    }
    leased_bytes_ += bytes;
    return {*this, AlignedBuffer(static_cast<size_t>(bytes))};
  }

 private:
  void give_back(AlignedBuffer buffer) {
    {
      const std::lock_guard lock(mutex_);
      leased_bytes_ -= buffer.size();
      idle_bytes_ += buffer.size();
      idle_.push_back(std::move(buffer));
    }
    room_.notify_all();
  }

  uint64_t most_bytes_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable room_;
  uint64_t leased_bytes_ = 0, idle_bytes_ = 0;
  std::vector<AlignedBuffer> idle_;
};

/// What a thread works with; taken once and used for every unit.
struct Worker {
  AlignedBuffer in, out, replica;
};

void grow(AlignedBuffer& buffer, uint64_t bytes) {
  if (buffer.size() >= bytes) return;
  buffer = AlignedBuffer();  // first the old one goes
  buffer = AlignedBuffer(static_cast<size_t>(bytes));
}

bool is_move(const CopyOp& op) {
  return op.box.num_axes == 1 && op.box.src_strides[0] == 1 && op.box.dst_strides[0] == 1;
}

class Executor {
 public:
  Executor(const Plan& plan, TensorSink& sink, const ExecuteOptions& options)
      : plan_(plan),
        sink_(sink),
        options_(options),
        budget_(options.jobs, options.max_memory, options.unit_sizes),
        files_(plan.model->checkpoint(), options.leave_page_cache),
        units_(plan, unit_options()),
        staging_(std::max(budget_.staged_bytes, uint64_t{1})),
        overflows_(plan.tensors.size()) {
    if (options.compare_replicas) replicas_.emplace(*plan.model);
  }

  std::vector<TensorOverflow> run() {
    for (size_t i = 0; i < plan_.tensors.size(); ++i) {
      std::byte* memory = sink_.memory(i);
      if (memory != nullptr && plan_.tensors[i].has_padding) {
        std::memset(memory, 0, plan_.tensors[i].num_bytes());
      }
    }
    const std::vector<Unit>& units = units_.units();
    const std::vector<size_t> own = own_units();
    ThreadPool pool(budget_.workers);
    pool.parallel_for(static_cast<int64_t>(own.size()), [&](int64_t i) {
      throw_if_cancelled();
      const size_t index = own[static_cast<size_t>(i)];
      if (options_.observer != nullptr && options_.observer->skip_unit(index)) return;
      std::unique_ptr<Worker> worker = take_worker();
      run_unit(units[index], *worker);
      if (options_.observer != nullptr) options_.observer->end_unit(index);
      const std::lock_guard lock(workers_mutex_);
      idle_workers_.push_back(std::move(worker));
    });
    if (replicas_) compare_unread(*take_worker());
    std::vector<TensorOverflow> result;
    for (size_t i = 0; i < overflows_.size(); ++i) {
      if (overflows_[i].load() > 0) result.push_back({i, overflows_[i].load()});
    }
    return result;
  }

 private:
  UnitOptions unit_options() {
    UnitOptions result;
    result.slab_bytes = budget_.slab_bytes;
    result.most_slab_bytes = budget_.most_slab_bytes;
    result.staged_bytes = budget_.staged_bytes;
    result.in_memory = [this](size_t tensor) { return sink_.memory(tensor) != nullptr; };
    result.phase = [this](size_t tensor, uint64_t offset) -> uint64_t {
      return sink_.phase(tensor, offset).value_or(offset % kDirectAlignment);
    };
    return result;
  }

  /// The units that this execution does.
  std::vector<size_t> own_units() {
    std::vector<size_t> own;
    if (options_.num_parts == 1) {
      own.resize(units_.units().size());
      std::iota(own.begin(), own.end(), size_t{0});
      return own;
    }
    const UnitParts parts(plan_, units_, budget_.slab_bytes, options_.num_parts,
                          replicas_ ? &*replicas_ : nullptr);
    for (size_t i = 0; i < units_.units().size(); ++i) {
      if (parts.part_of(i) == options_.part) own.push_back(i);
    }
    // What the other parts read is compared there; of the rest each part compares its share.
    if (replicas_) {
      for (const SourceSpan& span : parts.read_with_replicas()) {
        compared_[span.source].push_back(span);
      }
    }
    return own;
  }

  std::unique_ptr<Worker> take_worker() {
    const std::lock_guard lock(workers_mutex_);
    if (idle_workers_.empty()) return std::make_unique<Worker>();
    std::unique_ptr<Worker> worker = std::move(idle_workers_.back());
    idle_workers_.pop_back();
    return worker;
  }

  const StoredTensor& stored(int index) const {
    return plan_.model->checkpoint().tensors[static_cast<size_t>(index)];
  }
  size_t source_width(int source) const { return dtype_bytes(stored(source).dtype); }
  size_t target_width(size_t tensor) const {
    return dtype_bytes(plan_.tensors[tensor].target.dtype);
  }

  void run_unit(const Unit& unit, Worker& worker) {
    switch (unit.kind) {
      case Unit::Kind::kStreamed:
        return run_streamed(unit, worker);
      case Unit::Kind::kStaged:
        return run_staged(unit, worker);
      case Unit::Kind::kTensor:
        return plan_.tensors[unit.tensor].product ? run_product(unit.tensor)
                                                  : run_tensor(unit.tensor, worker);
      case Unit::Kind::kZeros:
        return run_zeros(unit, worker);
    }
  }

  /// A range of a stored tensor that has just been read.
  void passed(const SourceSpan& span, const std::byte* data, Worker& worker) {
    if (options_.observer != nullptr) {
      const auto bytes = static_cast<size_t>(span.hi - span.lo) * source_width(span.source);
      options_.observer->on_read(span.source, span.lo, {data, bytes});
    }
    if (replicas_ && !replicas_->of(span.source).empty()) compare_replicas(span, data, worker);
  }

  /// Reads the same range of every replica and compares it.
  void compare_replicas(const SourceSpan& span, const std::byte* data, Worker& worker) {
    const size_t width = source_width(span.source);
    const auto step = static_cast<int64_t>(kReplicaBytes / width);
    grow(worker.replica, read_room(kReplicaBytes));
    for (const int replica : replicas_->of(span.source)) {
      const StoredTensor& tensor = stored(replica);
      for (int64_t lo = span.lo; lo < span.hi; lo += step) {
        throw_if_cancelled();
        const size_t bytes = static_cast<size_t>(std::min(step, span.hi - lo)) * width;
        const uint64_t at = tensor.offset_bytes + static_cast<uint64_t>(lo) * width;
        const std::byte* other = files_.read(tensor.file, at, at + bytes, worker.replica.data());
        if (std::memcmp(data + static_cast<size_t>(lo - span.lo) * width, other, bytes) != 0) {
          throw_replicas_differ(*plan_.model, span.source, replica);
        }
      }
    }
    const std::lock_guard lock(compared_mutex_);
    compared_[span.source].push_back(span);
  }

  /// What the plan does not use of a tensor with replicas has not been read yet.
  void compare_unread(Worker& worker) {
    for (size_t i = 0; i < plan_.model->checkpoint().tensors.size(); ++i) {
      const auto source = static_cast<int>(i);
      if (replicas_->of(source).empty()) continue;
      if (static_cast<int>(i % static_cast<size_t>(options_.num_parts)) != options_.part) continue;
      std::vector<SourceSpan> done = compared_[source];
      std::sort(done.begin(), done.end(),
                [](const SourceSpan& a, const SourceSpan& b) { return a.lo < b.lo; });
      const int64_t end = stored(source).num_elements();
      done.push_back({source, end, end});
      int64_t lo = 0;
      for (const SourceSpan& span : done) {
        if (span.lo > lo) compare_stretch({source, lo, span.lo}, worker);
        lo = std::max(lo, span.hi);
      }
    }
  }

  void compare_stretch(const SourceSpan& span, Worker& worker) {
    const StoredTensor& tensor = stored(span.source);
    const size_t width = source_width(span.source);
    const auto step = static_cast<int64_t>(kReplicaBytes / width);
    for (int64_t lo = span.lo; lo < span.hi; lo += step) {
      const int64_t hi = std::min(span.hi, lo + step);
      const uint64_t at = tensor.offset_bytes + static_cast<uint64_t>(lo) * width;
      const uint64_t end = tensor.offset_bytes + static_cast<uint64_t>(hi) * width;
      grow(worker.in, read_room(kReplicaBytes));
      compare_replicas({span.source, lo, hi}, files_.read(tensor.file, at, end, worker.in.data()),
                       worker);
    }
  }

  void run_streamed(const Unit& unit, Worker& worker) {
    const Transfer transfer = units_.transfer(unit);
    if (read_in_place(transfer)) return;
    grow(worker.in, units_.most_read_bytes());
    struct Held {
      int file;
      uint64_t lo;
      std::byte* data;
    };
    std::vector<Held> held;
    std::byte* next = worker.in.data();
    for (const SourceRead& read : transfer.reads) {
      std::byte* data = files_.read(read.file, read.lo, read.hi, next);
      held.push_back({read.file, read.lo, data});
      for (const SourceSpan& span : read.spans) {
        const uint64_t at = stored(span.source).offset_bytes +
                            static_cast<uint64_t>(span.lo) * source_width(span.source);
        passed(span, data + (at - read.lo), worker);
      }
      next += read_room(read.hi - read.lo);
    }
    const auto source_of = [&](const CopyOp& op) {
      const StoredTensor& tensor = stored(op.source);
      const uint64_t at =
          tensor.offset_bytes + static_cast<uint64_t>(op.src_offset) * source_width(op.source);
      const auto behind = std::upper_bound(held.begin(), held.end(), std::pair{tensor.file, at},
                                           [](const auto& key, const Held& h) {
                                             return key < std::pair{h.file, h.lo};
                                           });
      const Held& found = *std::prev(behind);
      return found.data + (at - found.lo);
    };
    // One stretch of a source often goes to every rank, at the same phase: it is copied once.
    struct {
      const std::byte* source = nullptr;
      size_t bytes = 0, phase = 0;
    } staged;
    for (const TargetBlock& block : transfer.blocks) {
      const PlannedTensor& tensor = plan_.tensors[block.tensor];
      const size_t width = target_width(block.tensor);
      const size_t bytes = static_cast<size_t>(block.hi - block.lo) * width;
      if (std::byte* memory = sink_.memory(block.tensor); memory != nullptr) {
        for (const CopyOp& op : block.ops) {
          copy(block.tensor, op, memory + static_cast<size_t>(op.dst_offset) * width,
               source_of(op));
        }
        check_overflow(block.tensor);
        deliver(block.tensor, block.lo, nullptr, bytes);
        continue;
      }
      const std::optional<size_t> phase =
          sink_.phase(block.tensor, static_cast<uint64_t>(block.lo) * width);
      const bool is_plain = block.ops.size() == 1 && is_plain_move(block.tensor, block.ops[0]);
      if (is_plain) {
        std::byte* source = source_of(block.ops[0]);
        if (!phase || reinterpret_cast<uintptr_t>(source) % kDirectAlignment == *phase) {
          deliver(block.tensor, block.lo, source, bytes, &block.ops[0]);
          continue;
        }
      }
      grow(worker.out, units_.most_block_bytes() + kDirectAlignment);
      std::byte* out = worker.out.data() + phase.value_or(0);
      const std::byte* source = is_plain ? source_of(block.ops[0]) : nullptr;
      const bool is_there = is_plain && staged.source == source && staged.bytes == bytes &&
                            staged.phase == phase.value_or(0);
      if (!is_there) {
        if (tensor.has_padding) std::memset(out, 0, bytes);
        for (const CopyOp& op : block.ops) {
          copy(block.tensor, op, out + static_cast<size_t>(op.dst_offset - block.lo) * width,
               source_of(op));
        }
      }
      staged = {source, bytes, phase.value_or(0)};
      finish(block.tensor, block.lo, out, block.hi - block.lo);
    }
  }

  bool is_decoded(int source) const {
    return plan_.model->checkpoint().files[static_cast<size_t>(stored(source).file)].decoder !=
           nullptr;
  }

  bool has_steps(size_t tensor) const {
    return plan_.tensors[tensor].multiply != 1 || plan_.tensors[tensor].divide != 1;
  }

  /// Whether the bytes of the source are those of the target.
  bool is_plain_move(size_t tensor, const CopyOp& op) const {
    return is_move(op) && stored(op.source).dtype == plan_.tensors[tensor].target.dtype &&
           !has_steps(tensor);
  }

  /// Targets in memory that are plain copies are read to where they stay.
  bool read_in_place(const Transfer& transfer) {
    uint64_t read_bytes = 0, block_bytes = 0;
    for (const SourceRead& read : transfer.reads) read_bytes += read.hi - read.lo;
    for (const TargetBlock& block : transfer.blocks) {
      if (sink_.memory(block.tensor) == nullptr || options_.observer != nullptr || replicas_ ||
          !is_plain_move(block.tensor, block.ops[0])) {
        return false;
      }
      block_bytes += static_cast<uint64_t>(block.hi - block.lo) * target_width(block.tensor);
    }
    if (read_bytes != block_bytes) return false;
    for (const TargetBlock& block : transfer.blocks) {
      const CopyOp& op = block.ops[0];
      const size_t width = target_width(block.tensor);
      const size_t bytes = static_cast<size_t>(block.hi - block.lo) * width;
      files_.read_to(stored(op.source).file,
                     stored(op.source).offset_bytes + static_cast<uint64_t>(op.src_offset) * width,
                     {sink_.memory(block.tensor) + static_cast<size_t>(block.lo) * width, bytes});
      deliver(block.tensor, block.lo, nullptr, bytes);
    }
    return true;
  }

  /// A part of a target tensor that is held in memory until it is full.
  struct Block {
    size_t tensor = 0;
    int64_t lo = 0, hi = 0;  ///< elements of the target
    std::byte* data = nullptr;
  };

  void run_staged(const Unit& unit, Worker& worker) {
    const std::vector<UnitOp> ops = units_.ops(unit);
    std::vector<Block> blocks;
    for (const TargetSpan& span : units_.target_spans(ops)) {
      blocks.push_back({span.tensor, span.lo, span.hi});
    }
    StagingPool::Lease lease = staging_.take(unit.staged_bytes + 1);
    std::byte* next = lease.data();
    for (Block& block : blocks) {
      const size_t width = target_width(block.tensor);
      const size_t bytes = static_cast<size_t>(block.hi - block.lo) * width;
      if (std::byte* memory = sink_.memory(block.tensor); memory != nullptr) {
        block.data = memory + static_cast<size_t>(block.lo) * width;
        continue;
      }
      const size_t phase =
          sink_.phase(block.tensor, static_cast<uint64_t>(block.lo) * width).value_or(0);
      block.data = next + phase;
      next += (phase + bytes + kDirectAlignment - 1) / kDirectAlignment * kDirectAlignment;
      if (plan_.tensors[block.tensor].has_padding) std::memset(block.data, 0, bytes);
    }
    std::map<int, std::vector<CopyOp>> by_source;
    for (const UnitOp& op : ops) {
      const auto behind =
          std::upper_bound(blocks.begin(), blocks.end(), std::pair{op.tensor, op.op.dst_offset},
                           [](const auto& key, const Block& b) {
                             return key < std::pair{b.tensor, b.lo};
                           });
      const auto index = behind - blocks.begin() - 1;
      CopyOp placed = op.op;
      // Offsets become relative to all blocks side by side, so that a copy knows its block.
      placed.dst_offset += index * kBlockSpan - blocks[static_cast<size_t>(index)].lo;
      by_source[placed.source].push_back(placed);
    }
    for (const auto& [source, source_ops] : by_source) {
      read_groups(source, source_ops, worker, [&](const CopyOp& op, const std::byte* data) {
        const Block& block = blocks[static_cast<size_t>(op.dst_offset / kBlockSpan)];
        const auto at = static_cast<size_t>(op.dst_offset % kBlockSpan);
        copy(block.tensor, op, block.data + at * target_width(block.tensor), data);
      });
    }
    for (const Block& block : blocks) {
      finish(block.tensor, block.lo, block.data, block.hi - block.lo);
    }
  }

  template <typename Copy>
  void read_groups(int source, const std::vector<CopyOp>& ops, Worker& worker,
                   const Copy& copy_op) {
    const StoredTensor& tensor = stored(source);
    const auto width = static_cast<int64_t>(dtype_bytes(tensor.dtype));
    const auto slab = static_cast<int64_t>(budget_.slab_bytes);
    for (const OpGroup& group : group_ops(ops, Side::kSource, slab / width)) {
      throw_if_cancelled();
      const uint64_t lo = tensor.offset_bytes + static_cast<uint64_t>(group.lo * width);
      const uint64_t hi = tensor.offset_bytes + static_cast<uint64_t>(group.hi * width);
      grow(worker.in, std::max(units_.most_read_bytes(), read_room(hi - lo)));
      const std::byte* data = files_.read(tensor.file, lo, hi, worker.in.data());
      passed({source, group.lo, group.hi}, data, worker);
      for (const CopyOp& op : group.ops) copy_op(op, data + (op.src_offset - group.lo) * width);
    }
  }

  /// One target tensor as a whole, for arithmetic between tensors.
  void run_tensor(size_t index, Worker& worker) {
    const PlannedTensor& tensor = plan_.tensors[index];
    const size_t bytes = static_cast<size_t>(tensor.num_bytes());
    const int64_t elements = checked_num_elements(tensor.target.shape).value();
    const size_t phase = sink_.phase(index, 0).value_or(0);
    std::byte* memory = sink_.memory(index);
    const bool in_memory = memory != nullptr;
    StagingPool::Lease lease = staging_.take(in_memory ? 1 : bytes + 2 * kDirectAlignment);
    if (!in_memory) memory = lease.data() + phase;
    if (tensor.has_padding) std::memset(memory, 0, bytes);
    gather(index, tensor.ops, memory, worker);
    std::vector<float> first = stepped(tensor, memory, elements);
    if (!tensor.plus.empty()) {
      std::vector<std::byte> other(bytes);
      gather(index, tensor.plus, other.data(), worker);
      const std::vector<float> second = stepped(tensor, other.data(), elements);
      for (size_t i = 0; i < first.size(); ++i) first[i] += second[i];
    }
    count(index, kernels::convert(memory, tensor.target.dtype, first.data(), DType::F32, elements,
                                  options_.overflow));
    check_overflow(index);
    deliver(index, 0, in_memory ? nullptr : memory, bytes);
  }

  void gather(size_t index, const std::vector<CopyOp>& ops, std::byte* memory, Worker& worker) {
    std::map<int, std::vector<CopyOp>> by_source;
    for (const CopyOp& op : ops) by_source[op.source].push_back(op);
    for (const auto& [source, source_ops] : by_source) {
      read_groups(source, source_ops, worker, [&](const CopyOp& op, const std::byte* data) {
        copy(index, op, memory + static_cast<size_t>(op.dst_offset) * target_width(index), data);
      });
    }
  }

  void run_zeros(const Unit& unit, Worker& worker) {
    const size_t width = target_width(unit.tensor);
    const auto step = static_cast<int64_t>(kMiB / width);
    grow(worker.out, std::max(units_.most_block_bytes(), kMiB) + kDirectAlignment);
    for (int64_t lo = unit.lo; lo < unit.hi; lo += step) {
      throw_if_cancelled();
      const size_t bytes = static_cast<size_t>(std::min(step, unit.hi - lo)) * width;
      std::byte* out = worker.out.data() +
                       sink_.phase(unit.tensor, static_cast<uint64_t>(lo) * width).value_or(0);
      std::memset(out, 0, bytes);
      deliver(unit.tensor, lo, out, bytes);
    }
  }

  void copy(size_t tensor, const CopyOp& op, std::byte* to, const std::byte* from) {
    const DType source = stored(op.source).dtype, target = plan_.tensors[tensor].target.dtype;
    if (source == target && is_move(op)) {
      std::memcpy(to, from, static_cast<size_t>(op.box.extents[0]) * dtype_bytes(target));
      return;
    }
    count(tensor, kernels::copy_box(to, target, from, source, op.box, options_.overflow));
  }

  void count(size_t tensor, const kernels::CastStats& stats) {
    if (stats.overflowed > 0) overflows_[tensor] += stats.overflowed;
  }

  void check_overflow(size_t tensor) const {
    if (!options_.overflow_is_error || overflows_[tensor].load() == 0) return;
    throw_invalid("tensor '" + plan_.tensors[tensor].target.name + "'",
                  std::to_string(overflows_[tensor].load()) + " values do not fit " +
                      std::string(dtype_name(plan_.tensors[tensor].target.dtype)),
                  "choose --dtype bf16 or fp32, or convert with --on-overflow inf|clamp");
  }

  /// The element-wise steps, and the write. Elements are those from `lo` of the tensor.
  void finish(size_t index, int64_t lo, std::byte* memory, int64_t elements) {
    const PlannedTensor& tensor = plan_.tensors[index];
    if (has_steps(index)) {
      const std::vector<float> values = stepped(tensor, memory, elements);
      count(index, kernels::convert(memory, tensor.target.dtype, values.data(), DType::F32,
                                    elements, options_.overflow));
    }
    check_overflow(index);
    deliver(index, lo, memory, static_cast<size_t>(elements) * target_width(index));
  }

  /// Hands a finished stretch to the sink, in parts after which one can stop. `memory` is not
  /// looked at where the sink is memory. `unchanged`: the move that the stretch is.
  void deliver(size_t index, int64_t lo, const std::byte* memory, size_t bytes,
               const CopyOp* unchanged = nullptr) {
    const auto width = static_cast<int64_t>(target_width(index));
    if (sink_.memory(index) != nullptr) {
      if (options_.progress) options_.progress(bytes);
      return;
    }
    for (size_t done = 0; done < bytes;) {
      throw_if_cancelled();
      // All parts but the first start on a page, if the first byte of an element ever does.
      const size_t phase = reinterpret_cast<uintptr_t>(memory + done) % kDirectAlignment;
      size_t part = std::min(bytes - done, 2 * static_cast<size_t>(kSlabBytes) - phase);
      part = part / static_cast<size_t>(width) * static_cast<size_t>(width);
      const std::span<const std::byte> data(memory + done, part);
      const int64_t first = lo + static_cast<int64_t>(done) / width;
      if (options_.observer != nullptr) options_.observer->on_write(index, first, data);
      const auto offset = static_cast<uint64_t>(first * width);
      if (unchanged != nullptr && !is_decoded(unchanged->source)) {
        const StoredTensor& source = stored(unchanged->source);
        const auto file = files_.get(source.file);
        const uint64_t at = source.offset_bytes +
                            static_cast<uint64_t>((unchanged->src_offset + first - lo) * width);
        sink_.write_unchanged(index, offset, data, {file->file.descriptor(), at});
      } else {
        sink_.write(index, offset, data);
      }
      if (options_.progress) options_.progress(part);
      done += part;
    }
  }

  /// Multiplied, then divided, each rounded to the tensor's own dtype: the step is defined on the
  /// stored values.
  std::vector<float> stepped(const PlannedTensor& tensor, const std::byte* memory,
                             int64_t elements) const {
    std::vector<float> values(static_cast<size_t>(elements));
    std::vector<std::byte> rounded(static_cast<size_t>(elements) *
                                   dtype_bytes(tensor.target.dtype));
    kernels::convert(values.data(), DType::F32, memory, tensor.target.dtype, elements,
                     kernels::Overflow::kInf);
    for (const auto& [factor, divides] :
         {std::pair{tensor.multiply, false}, {tensor.divide, true}}) {
      if (factor == 1) continue;
      for (float& value : values) {
        value = divides ? value / static_cast<float>(factor) : value * static_cast<float>(factor);
      }
      kernels::convert(rounded.data(), tensor.target.dtype, values.data(), DType::F32, elements,
                       kernels::Overflow::kInf);
      kernels::convert(values.data(), DType::F32, rounded.data(), tensor.target.dtype, elements,
                       kernels::Overflow::kInf);
    }
    return values;
  }

  /// A few rows at a time.
  void run_product(size_t index) {
    const PlannedTensor& tensor = plan_.tensors[index];
    const ProductReader product(*plan_.model, *tensor.product);
    const int64_t rows = product.num_rows(), columns = product.num_columns();
    const int64_t step = std::max<int64_t>(1, kSlabBytes / 4 / std::max(product.k(), columns));
    std::vector<float> out(static_cast<size_t>(std::min(step, rows) * columns));
    const size_t width = target_width(index);
    std::vector<std::byte> converted(out.size() * width);
    for (int64_t row = 0; row < rows; row += step) {
      throw_if_cancelled();
      const int64_t n = std::min(step, rows - row);
      product.read(row, n, out);
      std::byte* memory = sink_.memory(index);
      std::byte* target = memory != nullptr ? memory + static_cast<size_t>(row * columns) * width
                                            : converted.data();
      count(index, kernels::convert(target, tensor.target.dtype, out.data(), DType::F32,
                                    n * columns, options_.overflow));
      check_overflow(index);
      deliver(index, row * columns, target, static_cast<size_t>(n * columns) * width);
    }
  }

  /// Wider than any tensor, so that (block, element) pairs fit one int64_t.
  static constexpr int64_t kBlockSpan = int64_t{1} << 48;

  const Plan& plan_;
  TensorSink& sink_;
  const ExecuteOptions& options_;
  Budget budget_;
  SourceFiles files_;
  TransferUnits units_;
  StagingPool staging_;
  std::mutex workers_mutex_;  // guards idle_workers_
  std::vector<std::unique_ptr<Worker>> idle_workers_;
  std::vector<std::atomic<uint64_t>> overflows_;
  std::optional<WholeReplicas> replicas_;
  std::mutex compared_mutex_;  // guards compared_
  std::map<int, std::vector<SourceSpan>> compared_;
};

}  // namespace

UnitSizes choose_unit_sizes(int jobs, uint64_t max_memory) {
  const Budget budget(jobs, max_memory);
  return {budget.slab_bytes, budget.most_slab_bytes, budget.staged_bytes};
}

std::vector<TensorOverflow> execute(const Plan& plan, TensorSink& sink,
                                    const ExecuteOptions& options) {
  return Executor(plan, sink, options).run();
}

}  // namespace llmctl::reshard
