#include "reshard/executor.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>

#include "formats/core/cancel.h"
#include "formats/core/error.h"
#include "formats/core/file.h"
#include "formats/core/thread_pool.h"
#include "reshard/box.h"
#include "reshard/product.h"

namespace llmctl::reshard {
namespace {

using formats::StoredTensor;

/// Bytes of one read: large enough for the disk, small enough to stay in cache for the copy.
constexpr int64_t kSlabBytes = int64_t{4} << 20;

/// Opens source files on demand and keeps a few open; a FasterTransformer tree has thousands.
class SourceFiles {
 public:
  explicit SourceFiles(const formats::Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  std::shared_ptr<const File> get(int index) {
    const std::lock_guard lock(mutex_);
    const auto it = open_.find(index);
    if (it != open_.end()) return it->second;
    if (open_.size() >= 64) open_.clear();
    const auto& described = checkpoint_.files[static_cast<size_t>(index)];
    auto file = std::make_shared<const File>(File::open_read(described.path));
    if (file->size_bytes() != described.size_bytes) {
      throw Error(ErrorCode::kEnvironment, "the file changed while it was in use",
                  described.path.string(), "make sure that nothing else writes to it");
    }
    open_[index] = file;
    return file;
  }

 private:
  const formats::Checkpoint& checkpoint_;
  std::mutex mutex_;  // guards open_
  std::map<int, std::shared_ptr<const File>> open_;
};

/// Memory that grows and is reused: fresh pages are what costs.
class Buffer {
 public:
  std::byte* get(size_t bytes) {
    if (bytes > size_) {
      data_.reset();
      data_ = std::make_unique_for_overwrite<std::byte[]>(bytes);
      size_ = bytes;
    }
    return data_.get();
  }

 private:
  std::unique_ptr<std::byte[]> data_;
  size_t size_ = 0;
};

/// A part of a target tensor that is staged in memory and written in one go.
struct Block {
  size_t tensor = 0;
  int64_t lo = 0, hi = 0;  ///< elements of the target
  std::vector<CopyOp> ops, plus;
};

/// What one worker does at a time.
struct Unit {
  std::vector<Block> blocks;
  uint64_t bytes = 0;
  uint64_t first_byte = 0;  ///< where its source begins, for the order of reading
};

class Executor {
 public:
  Executor(const Plan& plan, TensorSink& sink, const ExecuteOptions& options)
      : plan_(plan),
        sink_(sink),
        options_(options),
        files_(plan.model->checkpoint()),
        overflows_(plan.tensors.size()) {
    jobs_ = std::max(1, options.jobs);
    const uint64_t memory = std::max<uint64_t>(options.max_memory, uint64_t{64} << 20);
    const uint64_t share = memory / static_cast<uint64_t>(jobs_);
    const uint64_t slabs = 3 * static_cast<uint64_t>(kSlabBytes);
    unit_bytes_ = share > 2 * slabs ? share - slabs : share / 2;
  }

  std::vector<TensorOverflow> run() {
    make_units();
    ThreadPool pool(jobs_);
    pool.parallel_for(static_cast<int64_t>(units_.size()), [&](int64_t i) {
      static thread_local Buffer slab, staging;
      run_unit(units_[static_cast<size_t>(i)], slab, staging);
    });
    std::vector<TensorOverflow> result;
    for (size_t i = 0; i < overflows_.size(); ++i) {
      if (overflows_[i].load() > 0) result.push_back({i, overflows_[i].load()});
    }
    return result;
  }

 private:
  const StoredTensor& stored(int index) const {
    return plan_.model->checkpoint().tensors[static_cast<size_t>(index)];
  }

  uint64_t source_position(const PlannedTensor& tensor) const {
    uint64_t first = UINT64_MAX;
    for (const CopyOp& op : tensor.ops) {
      const StoredTensor& source = stored(op.source);
      // Files in order, then offsets: 2^40 is past the size of any one shard.
      first = std::min(first, (static_cast<uint64_t>(source.file) << 40) + source.offset_bytes);
    }
    return first;
  }

  /// Tensors that read the same stored tensor form one unit, so that it is read once; where that
  /// is too large for the budget, each is cut into blocks of its own.
  void make_units() {
    const size_t count = plan_.tensors.size();
    std::vector<size_t> leader(count);
    std::iota(leader.begin(), leader.end(), size_t{0});
    const auto find = [&](size_t i) {
      while (leader[i] != i) i = leader[i] = leader[leader[i]];
      return i;
    };
    std::map<int, size_t> reader;
    for (size_t i = 0; i < count; ++i) {
      for (const auto* ops : {&plan_.tensors[i].ops, &plan_.tensors[i].plus}) {
        for (const CopyOp& op : *ops) {
          const auto [it, fresh] = reader.insert({op.source, i});
          if (!fresh) leader[find(i)] = find(it->second);
        }
      }
    }
    std::map<size_t, std::vector<size_t>> components;
    for (size_t i = 0; i < count; ++i) components[find(i)].push_back(i);
    for (const auto& [first, members] : components) {
      uint64_t bytes = 0;
      for (const size_t i : members) bytes += staged_bytes(i);
      if (bytes <= unit_bytes_ && !plan_.tensors[first].product) {
        Unit unit;
        for (const size_t i : members) unit.blocks.push_back(whole(i));
        add_unit(std::move(unit));
      } else {
        for (const size_t i : members) split(i);
      }
    }
    std::stable_sort(units_.begin(), units_.end(),
                     [](const Unit& a, const Unit& b) { return a.first_byte < b.first_byte; });
  }

  /// In-memory targets are filled in place and need no staging.
  uint64_t staged_bytes(size_t i) {
    return sink_.memory(i) != nullptr ? 0 : plan_.tensors[i].num_bytes();
  }

  Block whole(size_t i) const {
    const PlannedTensor& tensor = plan_.tensors[i];
    return {i, 0, checked_num_elements(tensor.target.shape).value(), tensor.ops, tensor.plus};
  }

  void split(size_t i) {
    const PlannedTensor& tensor = plan_.tensors[i];
    if (tensor.product || !tensor.plus.empty() || staged_bytes(i) <= unit_bytes_) {
      Unit unit;
      unit.blocks.push_back(whole(i));
      return add_unit(std::move(unit));
    }
    const auto width = static_cast<int64_t>(dtype_bytes(tensor.target.dtype));
    const int64_t cap = std::max<int64_t>(1, static_cast<int64_t>(unit_bytes_) / width);
    std::vector<OpGroup> groups = group_ops(tensor.ops, Side::kTarget, cap);
    const int64_t end = checked_num_elements(tensor.target.shape).value();
    if (groups.empty()) groups.push_back({0, 0, {}});
    for (size_t g = 0; g < groups.size(); ++g) {
      // Padding between groups belongs to the block in front of it.
      const int64_t lo = g == 0 ? 0 : groups[g].lo;
      const int64_t hi = g + 1 < groups.size() ? groups[g + 1].lo : end;
      Unit unit;
      unit.blocks.push_back({i, lo, hi, std::move(groups[g].ops), {}});
      add_unit(std::move(unit));
    }
  }

  void add_unit(Unit unit) {
    unit.first_byte = UINT64_MAX;
    for (const Block& block : unit.blocks) {
      const PlannedTensor& tensor = plan_.tensors[block.tensor];
      unit.first_byte = std::min(unit.first_byte, source_position(tensor));
      if (sink_.memory(block.tensor) == nullptr) {
        unit.bytes += static_cast<uint64_t>(block.hi - block.lo) * dtype_bytes(tensor.target.dtype);
      }
    }
    units_.push_back(std::move(unit));
  }

  void run_unit(const Unit& unit, Buffer& slab, Buffer& staging) {
    throw_if_cancelled();
    if (plan_.tensors[unit.blocks.front().tensor].product) {
      for (const Block& block : unit.blocks) run_product(block, slab);
      return;
    }
    std::byte* next = staging.get(static_cast<size_t>(unit.bytes) + 64 * unit.blocks.size());
    std::vector<std::byte*> memory;
    for (const Block& block : unit.blocks) {
      const PlannedTensor& tensor = plan_.tensors[block.tensor];
      const size_t width = dtype_bytes(tensor.target.dtype);
      const size_t bytes = static_cast<size_t>(block.hi - block.lo) * width;
      std::byte* target = sink_.memory(block.tensor);
      if (target != nullptr) {
        target += static_cast<size_t>(block.lo) * width;
      } else {
        target = next;
        next += (bytes + 63) / 64 * 64;
      }
      if (tensor.has_padding) std::memset(target, 0, bytes);
      memory.push_back(target);
    }
    fill(unit, memory, slab);
    for (size_t b = 0; b < unit.blocks.size(); ++b) finish(unit.blocks[b], memory[b], slab);
  }

  struct Job {
    size_t block;
    CopyOp op;
  };

  /// Reads each stored tensor of the unit once, in slabs, and copies every box out of the slab.
  void fill(const Unit& unit, const std::vector<std::byte*>& memory, Buffer& slab) {
    std::map<int, std::vector<CopyOp>> by_source;
    for (size_t b = 0; b < unit.blocks.size(); ++b) {
      for (CopyOp op : unit.blocks[b].ops) {
        // Offsets become relative to all blocks side by side, so that a group knows its block.
        op.dst_offset += static_cast<int64_t>(b) * kBlockSpan - unit.blocks[b].lo;
        by_source[op.source].push_back(op);
      }
    }
    for (const auto& [source, ops] : by_source) {
      read_groups(source, ops, slab, [&](const CopyOp& op, const std::byte* bytes) {
        const auto b = static_cast<size_t>(op.dst_offset / kBlockSpan);
        const PlannedTensor& tensor = plan_.tensors[unit.blocks[b].tensor];
        const auto at = static_cast<size_t>(op.dst_offset % kBlockSpan);
        count(unit.blocks[b].tensor,
              kernels::copy_box(memory[b] + at * dtype_bytes(tensor.target.dtype),
                                tensor.target.dtype, bytes, stored(source).dtype, op.box,
                                options_.overflow));
      });
    }
  }

  template <typename Copy>
  void read_groups(int source, const std::vector<CopyOp>& ops, Buffer& slab, const Copy& copy) {
    const StoredTensor& tensor = stored(source);
    const auto width = static_cast<int64_t>(dtype_bytes(tensor.dtype));
    const std::shared_ptr<const File> file = files_.get(tensor.file);
    for (const OpGroup& group : group_ops(ops, Side::kSource, kSlabBytes / width)) {
      throw_if_cancelled();
      const size_t bytes = static_cast<size_t>((group.hi - group.lo) * width);
      std::byte* data = slab.get(bytes);
      const uint64_t offset = tensor.offset_bytes + static_cast<uint64_t>(group.lo * width);
      file->read_at({data, bytes}, offset);
      if (options_.leave_page_cache) file->drop_cache(offset, bytes);
      if (options_.observer != nullptr) {
        options_.observer->on_read(source, group.lo, {data, bytes});
      }
      for (const CopyOp& op : group.ops) copy(op, data + (op.src_offset - group.lo) * width);
    }
  }

  void count(size_t tensor, const kernels::CastStats& stats) {
    if (stats.overflowed > 0) overflows_[tensor] += stats.overflowed;
  }

  void check_overflow(size_t index) const {
    const uint64_t count = overflows_[index].load();
    if (!options_.overflow_is_error || count == 0) return;
    const formats::TargetTensor& target = plan_.tensors[index].target;
    throw_invalid(
        "tensor '" + target.name + "'",
        std::to_string(count) + " values do not fit " + std::string(dtype_name(target.dtype)),
        "choose --dtype bf16 or fp32, or convert with --on-overflow inf|clamp");
  }

  /// The element-wise steps, and the write.
  void finish(const Block& block, std::byte* memory, Buffer& slab) {
    const PlannedTensor& tensor = plan_.tensors[block.tensor];
    const int64_t elements = block.hi - block.lo;
    const size_t bytes = static_cast<size_t>(elements) * dtype_bytes(tensor.target.dtype);
    if (tensor.multiply != 1 || tensor.divide != 1 || !tensor.plus.empty()) {
      std::vector<float> first = stepped(tensor, memory, elements);
      if (!tensor.plus.empty()) {
        std::vector<std::byte> other(bytes);
        std::map<int, std::vector<CopyOp>> by_source;
        for (const CopyOp& op : block.plus) by_source[op.source].push_back(op);
        for (const auto& [source, ops] : by_source) {
          read_groups(source, ops, slab, [&](const CopyOp& op, const std::byte* data) {
            kernels::copy_box(other.data() + static_cast<size_t>(op.dst_offset) *
                                                 dtype_bytes(tensor.target.dtype),
                              tensor.target.dtype, data, stored(source).dtype, op.box,
                              options_.overflow);
          });
        }
        const std::vector<float> second = stepped(tensor, other.data(), elements);
        for (size_t i = 0; i < first.size(); ++i) first[i] += second[i];
      }
      count(block.tensor, kernels::convert(memory, tensor.target.dtype, first.data(), DType::F32,
                                           elements, options_.overflow));
    }
    check_overflow(block.tensor);
    if (options_.observer != nullptr) {
      options_.observer->on_write(block.tensor, block.lo, {memory, bytes});
    }
    if (sink_.memory(block.tensor) == nullptr) {
      sink_.write(block.tensor, static_cast<uint64_t>(block.lo) * dtype_bytes(tensor.target.dtype),
                  {memory, bytes});
    }
    if (options_.progress) options_.progress(bytes);
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
  void run_product(const Block& block, Buffer& slab) {
    const PlannedTensor& tensor = plan_.tensors[block.tensor];
    const ProductReader product(*plan_.model, *tensor.product);
    const int64_t rows = product.num_rows(), columns = product.num_columns();
    const int64_t step = std::max<int64_t>(1, kSlabBytes / 4 / std::max(product.k(), columns));
    std::vector<float> out(static_cast<size_t>(std::min(step, rows) * columns));
    const size_t width = dtype_bytes(tensor.target.dtype);
    for (int64_t row = 0; row < rows; row += step) {
      throw_if_cancelled();
      const int64_t n = std::min(step, rows - row);
      product.read(row, n, out);
      const size_t bytes = static_cast<size_t>(n * columns) * width;
      std::byte* memory = sink_.memory(block.tensor);
      std::byte* target =
          memory != nullptr ? memory + static_cast<size_t>(row * columns) * width : slab.get(bytes);
      count(block.tensor, kernels::convert(target, tensor.target.dtype, out.data(), DType::F32,
                                           n * columns, options_.overflow));
      check_overflow(block.tensor);
      if (options_.observer != nullptr) {
        options_.observer->on_write(block.tensor, row * columns, {target, bytes});
      }
      if (memory == nullptr) {
        sink_.write(block.tensor, static_cast<uint64_t>(row * columns) * width, {target, bytes});
      }
      if (options_.progress) options_.progress(bytes);
    }
  }

  /// Wider than any tensor, so that (block, element) pairs fit one int64_t.
  static constexpr int64_t kBlockSpan = int64_t{1} << 48;

  const Plan& plan_;
  TensorSink& sink_;
  const ExecuteOptions& options_;
  SourceFiles files_;
  int jobs_ = 1;
  uint64_t unit_bytes_ = 0;
  std::vector<Unit> units_;
  std::vector<std::atomic<uint64_t>> overflows_;
};

}  // namespace

std::vector<TensorOverflow> execute(const Plan& plan, TensorSink& sink,
                                    const ExecuteOptions& options) {
  return Executor(plan, sink, options).run();
}

namespace {

/// Dense row-major strides over `extents`.
std::vector<int64_t> dense_strides(const std::vector<int64_t>& extents) {
  std::vector<int64_t> strides(extents.size());
  int64_t stride = 1;
  for (size_t a = extents.size(); a-- > 0;) {
    strides[a] = stride;
    stride *= extents[a];
  }
  return strides;
}

/// Copies ops that share one target in memory, reading each stored tensor in slabs.
void copy_ops(const Model& model, const std::vector<CopyOp>& ops, std::byte* out, DType dtype) {
  std::map<int, std::vector<CopyOp>> by_source;
  for (const CopyOp& op : ops) by_source[op.source].push_back(op);
  static thread_local Buffer slab;
  for (const auto& [source, ops_of_source] : by_source) {
    const StoredTensor& tensor = model.checkpoint().tensors[static_cast<size_t>(source)];
    const auto width = static_cast<int64_t>(dtype_bytes(tensor.dtype));
    const File file =
        File::open_read(model.checkpoint().files[static_cast<size_t>(tensor.file)].path);
    for (const OpGroup& group : group_ops(ops_of_source, Side::kSource, kSlabBytes / width)) {
      throw_if_cancelled();
      const size_t bytes = static_cast<size_t>((group.hi - group.lo) * width);
      std::byte* data = slab.get(bytes);
      file.read_at({data, bytes}, tensor.offset_bytes + static_cast<uint64_t>(group.lo * width));
      for (const CopyOp& op : group.ops) {
        kernels::copy_box(out + op.dst_offset * static_cast<int64_t>(dtype_bytes(dtype)), dtype,
                          data + (op.src_offset - group.lo) * width, tensor.dtype, op.box,
                          kernels::Overflow::kInf);
      }
    }
  }
}

}  // namespace

void read_canonical_rows(const Model& model, const std::string& key, int64_t first, int64_t count,
                         std::span<float> out) {
  Piece piece;
  piece.tensor = key;
  piece.n = canonical_shape(Model::canonical_of(key), model.sizes());
  piece.lo.assign(piece.n.size(), 0);
  piece.lo[0] = first;
  piece.n[0] = count;
  piece.stride = dense_strides(piece.n);
  const int64_t elements = piece.num_elements();
  if (static_cast<size_t>(elements) > out.size()) {
    throw Error(ErrorCode::kInternal, "buffer too small for rows", key);
  }
  double multiply = 1;
  const std::vector<CopyOp> ops = plan_piece(model, key, piece, multiply);
  copy_ops(model, ops, reinterpret_cast<std::byte*>(out.data()), DType::F32);
  if (multiply == 1) return;
  for (float& value : out.first(static_cast<size_t>(elements))) {
    value *= static_cast<float>(multiply);
  }
}

std::vector<std::byte> read_box(const Model& model, const SourcePiece& source,
                                const IndexBox& box) {
  const std::vector<int64_t> strides = dense_strides(box.n);
  CopyOp op;
  op.source = source.tensor;
  op.src_offset = source.piece.offset;
  op.box.num_axes = static_cast<int>(box.n.size());
  for (size_t a = 0; a < box.n.size(); ++a) {
    op.box.extents[a] = box.n[a];
    op.box.src_strides[a] = source.piece.stride[a];
    op.box.dst_strides[a] = strides[a];
    op.src_offset += (box.lo[a] - source.piece.lo[a]) * source.piece.stride[a];
  }
  const DType dtype = model.checkpoint().tensors[static_cast<size_t>(source.tensor)].dtype;
  std::vector<std::byte> bytes(static_cast<size_t>(box.num_elements()) * dtype_bytes(dtype));
  copy_ops(model, {op}, bytes.data(), dtype);
  return bytes;
}

}  // namespace llmctl::reshard
