// Plans over files of random bytes, for tests of what moves them: no model, only tensors.
#pragma once

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/convert.h"
#include "reshard/executor.h"
#include "reshard/plan.h"
#include "tests/support/bytes.h"
#include "tests/support/temp_dir.h"

namespace llmctl::test {

/// A plan that is put together by hand, and the files it reads.
class HandPlan {
 public:
  explicit HandPlan(std::filesystem::path directory) : directory_(std::move(directory)) {
    plan.model = &model_;
  }

  /// A stored tensor of random values in a file of its own, `offset` bytes from its start.
  int source(DType dtype, const Shape& shape, uint64_t offset) {
    int64_t elements = 1;
    for (const int64_t n : shape) elements *= n;
    std::string bytes(offset + static_cast<uint64_t>(elements) * dtype_bytes(dtype) + 77, '\0');
    for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
      // Exponents stay below the top, so that every cast is an ordinary one.
      const uint64_t word = random_() & 0x3FFF3FFF3FFF3FFF;
      std::memcpy(bytes.data() + i, &word, 8);
    }
    return source_of(dtype, shape, offset, std::move(bytes));
  }

  int source_of(DType dtype, const Shape& shape, uint64_t offset, std::string bytes) {
    formats::Checkpoint& checkpoint = this->checkpoint();
    const std::filesystem::path path =
        directory_ / ("source-" + std::to_string(checkpoint.files.size()));
    write_bytes(path, bytes);
    formats::StoredTensor tensor;
    tensor.name = "source." + std::to_string(checkpoint.tensors.size());
    tensor.dtype = dtype;
    tensor.shape = shape;
    tensor.file = static_cast<int>(checkpoint.files.size());
    tensor.offset_bytes = offset;
    checkpoint.files.push_back({path, bytes.size()});
    checkpoint.tensors.push_back(tensor);
    contents.push_back(std::move(bytes));
    return static_cast<int>(checkpoint.tensors.size()) - 1;
  }

  size_t target(DType dtype, const Shape& shape, bool has_padding = false) {
    reshard::PlannedTensor tensor;
    tensor.target.name = "target." + std::to_string(plan.tensors.size());
    tensor.target.dtype = dtype;
    tensor.target.shape = shape;
    tensor.has_padding = has_padding;
    plan.tensors.push_back(tensor);
    return plan.tensors.size() - 1;
  }

  struct Axis {
    int64_t extent, src_stride, dst_stride;
  };
  void op(size_t target, int source, int64_t src_offset, int64_t dst_offset,
          const std::vector<Axis>& axes) {
    reshard::CopyOp op;
    op.source = source;
    op.src_offset = src_offset;
    op.dst_offset = dst_offset;
    for (const Axis& axis : axes) {
      const int a = op.box.num_axes++;
      op.box.extents[a] = axis.extent;
      op.box.src_strides[a] = axis.src_stride;
      op.box.dst_strides[a] = axis.dst_stride;
    }
    plan.tensors[target].ops.push_back(op);
  }

  /// What a target tensor must hold, by the plain loop.
  std::string expected(size_t target) {
    const reshard::PlannedTensor& tensor = plan.tensors[target];
    std::string bytes(tensor.num_bytes(), '\0');
    for (const reshard::CopyOp& op : tensor.ops) {
      const formats::StoredTensor& source = checkpoint().tensors[static_cast<size_t>(op.source)];
      kernels::copy_box_reference(
          bytes.data() + op.dst_offset * static_cast<int64_t>(dtype_bytes(tensor.target.dtype)),
          tensor.target.dtype,
          contents[static_cast<size_t>(source.file)].data() + source.offset_bytes +
              op.src_offset * static_cast<int64_t>(dtype_bytes(source.dtype)),
          source.dtype, op.box, kernels::Overflow::kInf);
    }
    return bytes;
  }

  formats::Checkpoint& checkpoint() {
    return const_cast<formats::Checkpoint&>(model_.checkpoint());
  }

  reshard::Plan plan;
  std::vector<std::string> contents;

 private:
  std::filesystem::path directory_;
  reshard::Model model_;
  std::mt19937_64 random_{11};
};

/// Every kind of movement there is: whole, split and merged along rows and columns, interleaved,
/// transposed, cast, padded, repeated; small and larger than a slab; from offsets of every sort.
inline void add_all_movements(HandPlan& p) {
  using reshard::CopyOp;
  const int64_t rows = 1536, columns = 1024;
  const auto half = [&](int64_t tp) { return columns / tp; };
  // Rows split four ways, and the whole kept too.
  const int split = p.source(DType::F16, {rows, columns}, 64);
  for (int64_t r = 0; r < 4; ++r) {
    const size_t t = p.target(DType::F16, {rows / 4, columns});
    p.op(t, split, r * rows / 4 * columns, 0, {{rows / 4 * columns, 1, 1}});
  }
  p.op(p.target(DType::F16, {rows, columns}), split, 0, 0,
       {{rows, columns, columns}, {columns, 1, 1}});
  // Columns split eight ways, one of them cast.
  const int wide = p.source(DType::F32, {4096, columns}, 192);
  for (int64_t r = 0; r < 8; ++r) {
    const size_t t = p.target(r == 3 ? DType::BF16 : DType::F32, {4096, half(8)});
    p.op(t, wide, r * half(8), 0, {{4096, columns, half(8)}, {half(8), 1, 1}});
  }
  // Columns merged from four.
  const size_t merged = p.target(DType::F16, {rows, columns});
  for (int64_t r = 0; r < 4; ++r) {
    const int part = p.source(DType::F16, {rows, half(4)}, static_cast<uint64_t>(8 + 4096 * r));
    p.op(merged, part, 0, r * half(4), {{rows, half(4), columns}, {half(4), 1, 1}});
  }
  // Three tensors interleaved by groups of rows.
  const size_t fused = p.target(DType::BF16, {16 * 3, 64, columns});
  for (int64_t k = 0; k < 3; ++k) {
    const int part = p.source(DType::BF16, {16, 64, columns}, 4096);
    p.op(fused, part, 0, k * 64 * columns,
         {{16, 64 * columns, 3 * 64 * columns}, {64 * columns, 1, 1}});
  }
  // The same from one tensor that has them in blocks, in groups of few bytes.
  const int blocks = p.source(DType::BF16, {3, 512, 96}, 64);
  const size_t interleaved = p.target(DType::BF16, {512, 3, 96});
  for (int64_t k = 0; k < 3; ++k) {
    p.op(interleaved, blocks, k * 512 * 96, k * 96, {{512, 96, 3 * 96}, {96, 1, 1}});
  }
  // Transposed, whole and split two ways.
  const int turned = p.source(DType::F16, {3000, 1400}, 128);
  p.op(p.target(DType::F16, {1400, 3000}), turned, 0, 0, {{3000, 1400, 1}, {1400, 1, 3000}});
  const int halves = p.source(DType::F32, {1200, 2048}, 128);
  for (int64_t r = 0; r < 2; ++r) {
    const size_t t = p.target(DType::F16, {1024, 1200});
    p.op(t, halves, r * 1024, 0, {{1200, 2048, 1}, {1024, 1, 1200}});
  }
  // Padded rows at the end, and a strip of padding in each row.
  const int short_one = p.source(DType::F16, {1001, columns}, 64);
  p.op(p.target(DType::F16, {3333, columns}, true), short_one, 0, 0, {{1001 * columns, 1, 1}});
  const int narrow = p.source(DType::F16, {700, 100}, 0);
  p.op(p.target(DType::F16, {700, 128}, true), narrow, 0, 0, {{700, 100, 128}, {100, 1, 1}});
  p.target(DType::F16, {50, 3}, true);  // nothing but padding
  p.target(DType::F16, {0, 3});
  // Parts of one tensor in several places, overlapping in the source.
  const int shared = p.source(DType::I8, {5000000}, 5);
  p.op(p.target(DType::I8, {3000000}), shared, 0, 0, {{3000000, 1, 1}});
  p.op(p.target(DType::I8, {3500000}), shared, 1500000, 0, {{3500000, 1, 1}});
  // A hundred small ones.
  for (int64_t i = 0; i < 100; ++i) {
    const int bias = p.source(DType::F16, {i + 1}, 64);
    p.op(p.target(i % 2 == 0 ? DType::F16 : DType::F32, {i + 1}), bias, 0, 0, {{i + 1, 1, 1}});
  }
}

}  // namespace llmctl::test
