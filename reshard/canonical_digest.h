// Digests of canonical tensors, taken from whatever bytes hold them: the same values give the same
// digest in any layout, so that what was read and what was written can be compared.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/digest_box.h"
#include "reshard/box.h"
#include "reshard/model.h"

namespace llmctl::reshard {

/// The weights of the indices of every axis that some canonical tensor of a model has. They depend
/// on the axis' name and the index alone. Immutable; safe to share.
class DigestWeights {
 public:
  explicit DigestWeights(const Model& model);
  /// One weight per index of `axis`.
  const std::vector<uint32_t>& of(std::string_view axis) const;

 private:
  std::map<std::string, std::vector<uint32_t>, std::less<>> weights_;
};

/// A box of a canonical tensor as it lies in a stored or target tensor. Refers to the weights.
class PlacedBox {
 public:
  /// `box` is a part of `piece`, which is a part of canonical tensor `key`.
  PlacedBox(const DigestWeights& weights, const std::string& key, const Piece& piece,
            const IndexBox& box);

  /// The digest of those elements of the box that lie in [lo, hi) of the tensor. `data` are the
  /// bytes of that range, elements of `width` bytes.
  uint64_t digest(int64_t lo, int64_t hi, const std::byte* data, int64_t width) const;
  /// Elements of the tensor from the first to behind the last that belongs to the box.
  int64_t first() const { return offset_; }
  int64_t end() const { return end_; }

 private:
  kernels::DigestBox box_;
  int64_t offset_ = 0, end_ = 0;
};

/// Divides boxes of one canonical tensor into layers that each hold every element once: the first
/// layer takes what it lacks of each box in turn, the next ones take what is left over. So copies
/// of a tensor on several ranks become layers of their own.
class Layers {
 public:
  explicit Layers(Shape shape) : shape_(std::move(shape)) {}

  struct Part {
    size_t layer = 0;
    IndexBox box;
  };
  /// The disjoint parts of `box` and the layers they fall into.
  std::vector<Part> add(const IndexBox& box);
  size_t count() const { return missing_.size(); }
  /// Whether the layer has every element.
  bool is_complete(size_t layer) const { return missing_[layer].empty(); }

 private:
  Shape shape_;
  std::vector<std::vector<IndexBox>> missing_;  // by layer
};

/// 16 hexadecimal digits.
std::string digest_hex(uint64_t digest);

struct CanonicalDigest {
  std::string key;
  DType dtype = DType::F32;  ///< of the elements that were digested
  uint64_t digest = 0;
};

/// Digests of all tensors of a checkpoint as they are stored, read once in slabs. Of replicas the
/// first is taken. In canonical order; F32 stands for a tensor that is stored in several dtypes,
/// whose digest no other layout shares. Memory: 4 MiB per job.
std::vector<CanonicalDigest> digest_stored(const Model& model, int jobs);

}  // namespace llmctl::reshard
