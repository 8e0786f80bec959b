// Reading canonical tensors, or boxes of them, wherever they are stored.
#include <map>

#include "formats/core/cancel.h"
#include "formats/core/error.h"
#include "formats/file_decoder.h"
#include "reshard/executor.h"

namespace llmctl::reshard {

using formats::StoredTensor;

namespace {

/// Bytes of one read: large enough for the disk, small enough to stay in cache for the copy.
constexpr int64_t kSlabBytes = int64_t{4} << 20;

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
  static thread_local std::vector<std::byte> slab;
  for (const auto& [source, ops_of_source] : by_source) {
    const StoredTensor& tensor = model.checkpoint().tensors[static_cast<size_t>(source)];
    const auto width = static_cast<int64_t>(dtype_bytes(tensor.dtype));
    const formats::TensorFile file(model.checkpoint().files[static_cast<size_t>(tensor.file)]);
    for (const OpGroup& group : group_ops(ops_of_source, Side::kSource, kSlabBytes / width)) {
      throw_if_cancelled();
      const size_t bytes = static_cast<size_t>((group.hi - group.lo) * width);
      if (slab.size() < bytes) slab.resize(bytes);
      std::byte* data = slab.data();
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
