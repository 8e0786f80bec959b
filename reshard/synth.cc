#include "reshard/synth.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "formats/core/cancel.h"
#include "formats/core/error.h"
#include "formats/core/file.h"
#include "formats/core/thread_pool.h"
#include "formats/crc32.h"
#include "kernels/copy_box.h"
#include "reshard/random_weights.h"

namespace llmctl::reshard {
namespace {

using kernels::Box;

/// Elements of a target tensor that are made and written at a time.
constexpr int64_t kUnitElements = int64_t{2} << 20;
/// Elements that are drawn at a time, as F32: they stay in the second-level cache.
constexpr int64_t kDrawElements = int64_t{32} << 10;

/// Draws the source of one box in canonical order and copies it to its place.
class Drawer {
 public:
  /// Elements of `tensor` go to dst + box strides, rounded to `dtype`.
  Drawer(const RandomTensor& tensor, std::byte* dst, DType dtype)
      : tensor_(tensor), dst_(dst), dtype_(dtype), values_(kDrawElements) {}

  void draw(const CopyOp& op) {
    // Slowest source axis first: what is drawn then follows the canonical order.
    Box box;
    std::vector<int> order(static_cast<size_t>(op.box.num_axes));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return op.box.src_strides[a] > op.box.src_strides[b]; });
    for (const int axis : order) {
      if (op.box.extents[axis] == 1) continue;
      box.extents[box.num_axes] = op.box.extents[axis];
      box.src_strides[box.num_axes] = op.box.src_strides[axis];
      box.dst_strides[box.num_axes] = op.box.dst_strides[axis];
      ++box.num_axes;
    }
    recurse(box, op.src_offset, op.dst_offset);
  }

 private:
  static int64_t count(const Box& box) {
    return std::accumulate(box.extents, box.extents + box.num_axes, int64_t{1},
                           std::multiplies<>());
  }

  void recurse(Box box, int64_t src, int64_t dst) {
    const int64_t elements = count(box);
    if (elements <= kDrawElements) return copy(box, src, dst);
    const int64_t extent = box.extents[0];
    const int64_t inner = elements / extent;
    const int64_t step = std::max<int64_t>(1, kDrawElements / inner);
    for (int64_t i = 0; i < extent; i += step) {
      Box part = box;
      part.extents[0] = std::min(step, extent - i);
      const int64_t part_src = src + i * box.src_strides[0];
      const int64_t part_dst = dst + i * box.dst_strides[0];
      if (inner <= kDrawElements) {
        copy(part, part_src, part_dst);
        continue;
      }
      // One index of the slowest axis: it drops out.
      for (int a = 1; a < box.num_axes; ++a) {
        part.extents[a - 1] = box.extents[a];
        part.src_strides[a - 1] = box.src_strides[a];
        part.dst_strides[a - 1] = box.dst_strides[a];
      }
      part.num_axes = box.num_axes - 1;
      recurse(part, part_src, part_dst);
    }
  }

  /// Draws `box` densely, in runs that are as long as the source has them, and copies it.
  void copy(Box box, int64_t src, int64_t dst) {
    int64_t run = 1;
    int axis = box.num_axes;
    while (axis > 0 && box.src_strides[axis - 1] == run) run *= box.extents[--axis];
    const int64_t elements = count(box);
    std::vector<int64_t> index(static_cast<size_t>(axis), 0);
    for (int64_t done = 0; done < elements; done += run) {
      tensor_.fill(src,
                   std::span(values_).subspan(static_cast<size_t>(done), static_cast<size_t>(run)));
      for (int a = axis; a-- > 0;) {
        src += box.src_strides[a];
        if (++index[static_cast<size_t>(a)] < box.extents[a]) break;
        src -= box.extents[a] * box.src_strides[a];
        index[static_cast<size_t>(a)] = 0;
      }
    }
    int64_t stride = 1;
    for (int a = box.num_axes; a-- > 0;) {
      box.src_strides[a] = stride;
      stride *= box.extents[a];
    }
    kernels::copy_box(dst_ + dst * static_cast<int64_t>(dtype_bytes(dtype_)), dtype_,
                      values_.data(), DType::F32, box, kernels::Overflow::kInf);
  }

  const RandomTensor& tensor_;
  std::byte* dst_;
  DType dtype_;
  std::vector<float> values_;
};

/// A range of a target tensor.
struct Unit {
  size_t tensor = 0;
  int64_t lo = 0, hi = 0;  ///< elements
  std::vector<CopyOp> ops;
};

class Filler {
 public:
  Filler(const Plan& plan, uint64_t seed, TensorSink& sink, const ExecuteOptions& options)
      : plan_(plan), seed_(seed), sink_(sink), options_(options) {}

  void run() {
    for (size_t i = 0; i < plan_.tensors.size(); ++i) add_units(i);
    ThreadPool pool(std::max(1, options_.jobs));
    pool.parallel_for(static_cast<int64_t>(units_.size()), [&](int64_t i) {
      throw_if_cancelled();
      static thread_local std::vector<std::byte> memory;
      fill(units_[static_cast<size_t>(i)], memory);
    });
  }

 private:
  void add_units(size_t i) {
    const PlannedTensor& tensor = plan_.tensors[i];
    if (tensor.product) {
      throw_usage("'" + tensor.target.name + "'",
                  "this format stores it as a product of two of the model's tensors",
                  "make a Hugging Face checkpoint and convert that");
    }
    const int64_t end = checked_num_elements(tensor.target.shape).value();
    if (needs_steps(tensor)) {
      units_.push_back({i, 0, end, tensor.ops});
      return;
    }
    std::vector<OpGroup> groups = group_ops(tensor.ops, Side::kTarget, kUnitElements);
    if (groups.empty()) groups.push_back({0, 0, {}});
    for (size_t g = 0; g < groups.size(); ++g) {
      // Padding between groups belongs to the one in front of it, and is cut up as well.
      int64_t lo = g == 0 ? 0 : groups[g].lo;
      const int64_t hi = g + 1 < groups.size() ? groups[g + 1].lo : end;
      const int64_t filled = std::min(groups[g].hi, hi);
      units_.push_back({i, lo, filled, std::move(groups[g].ops)});
      for (lo = filled; lo < hi; lo += kUnitElements) {
        units_.push_back({i, lo, std::min(lo + kUnitElements, hi), {}});
      }
    }
  }

  static bool needs_steps(const PlannedTensor& tensor) {
    return !tensor.plus.empty() || tensor.multiply != 1 || tensor.divide != 1;
  }

  void draw(const std::vector<CopyOp>& ops, int64_t lo, DType dtype, std::byte* memory) const {
    for (CopyOp op : ops) {
      const auto& stored = plan_.model->checkpoint().tensors[static_cast<size_t>(op.source)];
      op.dst_offset -= lo;
      const RandomTensor values(seed_, stored.name);
      Drawer(values, memory, dtype).draw(op);
    }
  }

  void fill(const Unit& unit, std::vector<std::byte>& memory) {
    if (unit.lo == unit.hi) return;
    const PlannedTensor& tensor = plan_.tensors[unit.tensor];
    const DType dtype = tensor.target.dtype;
    const size_t width = dtype_bytes(dtype);
    const size_t bytes = static_cast<size_t>(unit.hi - unit.lo) * width;
    if (memory.size() < bytes) memory.resize(bytes);
    if (tensor.has_padding || unit.ops.empty()) std::memset(memory.data(), 0, bytes);
    draw(unit.ops, unit.lo, dtype, memory.data());
    if (needs_steps(tensor)) {
      std::vector<float> sum = stepped(tensor, memory.data(), unit.hi);
      if (!tensor.plus.empty()) {
        draw(tensor.plus, 0, dtype, memory.data());
        const std::vector<float> second = stepped(tensor, memory.data(), unit.hi);
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += second[i];
      }
      kernels::convert(memory.data(), dtype, sum.data(), DType::F32, unit.hi,
                       kernels::Overflow::kInf);
    }
    sink_.write(unit.tensor, static_cast<uint64_t>(unit.lo) * width, {memory.data(), bytes});
    if (options_.progress) options_.progress(bytes);
  }

  /// Multiplied, then divided, each rounded to the target's dtype, as the executor does.
  static std::vector<float> stepped(const PlannedTensor& tensor, std::byte* memory,
                                    int64_t elements) {
    const DType dtype = tensor.target.dtype;
    std::vector<float> values(static_cast<size_t>(elements));
    const auto read = [&] {
      kernels::convert(values.data(), DType::F32, memory, dtype, elements, kernels::Overflow::kInf);
    };
    const auto round = [&] {
      kernels::convert(memory, dtype, values.data(), DType::F32, elements, kernels::Overflow::kInf);
      read();
    };
    read();
    if (tensor.multiply != 1) {
      for (float& value : values) value *= static_cast<float>(tensor.multiply);
      round();
    }
    if (tensor.divide != 1) {
      for (float& value : values) value /= static_cast<float>(tensor.divide);
      round();
    }
    return values;
  }

  const Plan& plan_;
  uint64_t seed_;
  TensorSink& sink_;
  const ExecuteOptions& options_;
  std::vector<Unit> units_;
};

/// CRC-32 of so many zero bytes, in a logarithm of steps.
uint32_t crc32_of_zeros(uint64_t count) {
  const std::byte zero{};
  uint32_t power = formats::crc32({&zero, 1}), result = 0;
  for (uint64_t length = 1; count != 0; length *= 2, count >>= 1) {
    if ((count & 1) != 0) result = formats::combine_crc32(result, power, length);
    power = formats::combine_crc32(power, power, length);
  }
  return result;
}

}  // namespace

void fill_random(const Plan& plan, uint64_t seed, TensorSink& sink, const ExecuteOptions& options) {
  Filler(plan, seed, sink, options).run();
}

void write_sparse(const Plan& plan, std::span<const formats::FilePlan> files,
                  const std::filesystem::path& directory) {
  for (const formats::FilePlan& described : files) {
    throw_if_cancelled();
    const std::filesystem::path path = directory / described.name;
    std::filesystem::create_directories(path.parent_path());
    File file = File::create(path);
    if (::ftruncate(file.descriptor(), static_cast<off_t>(described.size_bytes)) != 0) {
      throw_errno(path.string(), "cannot be made this long");
    }
    for (const auto& literal : described.literals) {
      file.write_at(std::as_bytes(std::span(literal.bytes)), literal.offset_bytes);
    }
    for (const auto& patch : described.crc_patches) {
      const uint32_t crc =
          crc32_of_zeros(plan.tensors[static_cast<size_t>(patch.tensor)].num_bytes());
      std::byte bytes[4];
      for (int i = 0; i < 4; ++i) bytes[i] = static_cast<std::byte>(crc >> (8 * i));
      file.write_at(bytes, patch.local_offset_bytes);
      file.write_at(bytes, patch.directory_offset_bytes);
    }
    file.sync();
  }
}

}  // namespace llmctl::reshard
