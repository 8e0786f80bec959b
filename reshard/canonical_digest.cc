#include "reshard/canonical_digest.h"

#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <memory>

#include "formats/core/cancel.h"
#include "formats/core/error.h"
#include "formats/core/thread_pool.h"
#include "formats/file_decoder.h"

namespace llmctl::reshard {

using formats::StoredTensor;

DigestWeights::DigestWeights(const Model& model) {
  for (const std::string& key : model.keys()) {
    for (const std::string& axis : split_words(Model::canonical_of(key).axes)) {
      std::vector<uint32_t>& weights = weights_[axis];
      if (!weights.empty()) continue;
      const uint64_t seed = XXH3_64bits(axis.data(), axis.size());
      weights.resize(static_cast<size_t>(model.sizes().get(axis)));
      for (size_t i = 0; i < weights.size(); ++i) {
        weights[i] = kernels::digest_weight(seed, static_cast<int64_t>(i));
      }
    }
  }
}

const std::vector<uint32_t>& DigestWeights::of(std::string_view axis) const {
  const auto it = weights_.find(axis);
  if (it == weights_.end()) throw Error(ErrorCode::kInternal, "no weights", std::string(axis));
  return it->second;
}

PlacedBox::PlacedBox(const DigestWeights& weights, const std::string& key, const Piece& piece,
                     const IndexBox& box)
    : offset_(piece.offset) {
  const std::vector<std::string> axes = split_words(Model::canonical_of(key).axes);
  box_.num_axes = static_cast<int>(axes.size());
  end_ = 1;
  for (size_t a = 0; a < axes.size(); ++a) {
    box_.extents[a] = box.n[a];
    box_.strides[a] = piece.stride[a];
    box_.weights[a] = weights.of(axes[a]).data() + box.lo[a];
    offset_ += (box.lo[a] - piece.lo[a]) * piece.stride[a];
    end_ += (box.n[a] - 1) * piece.stride[a];
  }
  end_ += offset_;
}

namespace {

/// `box` begins at `offset`; [lo, hi) is what `data` holds.
uint64_t digest_part(const kernels::DigestBox& box, int64_t offset, int64_t lo, int64_t hi,
                     const std::byte* data, int64_t width) {
  int64_t last = offset;
  int slowest = -1;
  for (int a = 0; a < box.num_axes; ++a) {
    last += (box.extents[a] - 1) * box.strides[a];
    if (box.extents[a] > 1 && (slowest < 0 || box.strides[a] > box.strides[slowest])) slowest = a;
  }
  if (last < lo || offset >= hi) return 0;
  if (offset >= lo && last < hi) {
    return kernels::digest_box(data + (offset - lo) * width, width, box);
  }
  if (slowest < 0) return 0;
  // Indices of the slowest axis: [inside, outside) lie in the range whole, those beside them in
  // part or not at all.
  const int64_t stride = box.strides[slowest], extent = box.extents[slowest];
  const int64_t inner = last - offset - (extent - 1) * stride;
  const auto first_at_least = [&](int64_t position) {
    if (position <= offset) return int64_t{0};
    return stride == 0 ? extent : std::min(extent, (position - offset + stride - 1) / stride);
  };
  const int64_t begin = first_at_least(lo - inner), end = first_at_least(hi);
  const int64_t inside = std::max(begin, first_at_least(lo));
  const int64_t outside = std::max(inside, std::min(end, first_at_least(hi - inner)));
  const auto take = [&](int64_t from, int64_t to) {
    kernels::DigestBox part = box;
    part.extents[slowest] = to - from;
    part.weights[slowest] += from;
    return digest_part(part, offset + from * stride, lo, hi, data, width);
  };
  uint64_t sum = outside > inside ? take(inside, outside) : 0;
  for (int64_t i = begin; i < std::min(inside, end); ++i) sum += take(i, i + 1);
  for (int64_t i = outside; i < end; ++i) sum += take(i, i + 1);
  return sum;
}

}  // namespace

uint64_t PlacedBox::digest(int64_t lo, int64_t hi, const std::byte* data, int64_t width) const {
  return digest_part(box_, offset_, lo, hi, data, width);
}

std::vector<Layers::Part> Layers::add(const IndexBox& box) {
  std::vector<Part> parts;
  std::vector<IndexBox> left = {box};
  if (box.is_empty()) return parts;
  for (size_t layer = 0; !left.empty(); ++layer) {
    if (layer == missing_.size()) missing_.push_back({IndexBox::whole(shape_)});
    std::vector<IndexBox> rest;
    for (const IndexBox& wanted : left) {
      std::vector<IndexBox> unplaced = {wanted};
      for (const IndexBox& gap : std::vector<IndexBox>(missing_[layer])) {
        const auto shared = intersect(wanted, gap);
        if (!shared) continue;
        parts.push_back({layer, *shared});
        missing_[layer] = subtract(missing_[layer], *shared);
        unplaced = subtract(unplaced, *shared);
      }
      rest.insert(rest.end(), unplaced.begin(), unplaced.end());
    }
    left = std::move(rest);
  }
  return parts;
}

std::string digest_hex(uint64_t digest) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (int shift = 60; shift >= 0; shift -= 4) text += kDigits[digest >> shift & 15];
  return text;
}

std::vector<CanonicalDigest> digest_stored(const Model& model, int jobs) {
  constexpr int64_t kSlabBytes = int64_t{4} << 20;
  const DigestWeights weights(model);
  const std::vector<StoredTensor>& tensors = model.checkpoint().tensors;
  struct Part {
    size_t key;
    PlacedBox box;
  };
  std::vector<std::vector<Part>> parts(tensors.size());
  std::vector<CanonicalDigest> result;
  for (const std::string& key : model.keys()) {
    CanonicalDigest digest;
    digest.key = key;
    Layers layers(canonical_shape(Model::canonical_of(key), model.sizes()));
    bool first = true;
    for (const SourcePiece& source : model.pieces(key)) {
      const auto index = static_cast<size_t>(source.tensor);
      const DType dtype = tensors[index].dtype;
      digest.dtype = first || digest.dtype == dtype ? dtype : DType::F32;
      first = false;
      for (const Layers::Part& part : layers.add(IndexBox::of(source.piece))) {
        if (part.layer > 0) continue;
        parts[index].push_back({result.size(), PlacedBox(weights, key, source.piece, part.box)});
      }
    }
    result.push_back(digest);
  }
  struct Slab {
    size_t tensor;
    int64_t lo, hi;
  };
  std::vector<Slab> slabs;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t step = kSlabBytes / static_cast<int64_t>(dtype_bytes(tensors[i].dtype));
    int64_t lo = INT64_MAX, end = 0;
    for (const Part& part : parts[i]) {
      lo = std::min(lo, part.box.first());
      end = std::max(end, part.box.end());
    }
    for (; lo < end; lo += step) slabs.push_back({i, lo, std::min(end, lo + step)});
  }
  std::vector<std::atomic<uint64_t>> sums(result.size());
  ThreadPool pool(jobs);
  pool.parallel_for(static_cast<int64_t>(slabs.size()), [&](int64_t s) {
    throw_if_cancelled();
    const Slab& slab = slabs[static_cast<size_t>(s)];
    const StoredTensor& tensor = tensors[slab.tensor];
    const auto width = static_cast<int64_t>(dtype_bytes(tensor.dtype));
    static thread_local std::vector<std::byte> bytes;
    bytes.resize(static_cast<size_t>((slab.hi - slab.lo) * width));
    const formats::TensorFile file(model.checkpoint().files[static_cast<size_t>(tensor.file)]);
    file.read_at(bytes, tensor.offset_bytes + static_cast<uint64_t>(slab.lo * width));
    for (const Part& part : parts[slab.tensor]) {
      sums[part.key] += part.box.digest(slab.lo, slab.hi, bytes.data(), width);
    }
  });
  for (size_t i = 0; i < result.size(); ++i) result[i].digest = sums[i].load();
  return result;
}

}  // namespace llmctl::reshard
