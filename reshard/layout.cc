#include "reshard/layout.h"

#include <algorithm>
#include <utility>

#include "formats/core/error.h"

namespace llmctl::reshard {
namespace {

/// One axis of a canonical tensor as a factor leaves it to a rank.
struct Range {
  std::string axis;
  int64_t lo = 0, n = 0;  ///< canonical indices held
  int64_t stored = 0;     ///< length in the stored tensor: n, or more with padding
};

/// A piece under construction: axes placed so far.
struct Partial {
  std::string tensor;
  struct Axis {
    int64_t lo, n, stride;
  };
  std::map<std::string, Axis> axes;
  int64_t offset = 0;
};

std::string list_sizes(const std::vector<int64_t>& sizes) {
  std::string text;
  for (size_t i = 0; i < sizes.size(); ++i) {
    text += (i == 0 ? "" : i + 1 == sizes.size() ? " or " : ", ") + std::to_string(sizes[i]);
  }
  return text;
}

std::vector<int64_t> small_divisors(int64_t n) {
  std::vector<int64_t> divisors;
  for (int64_t i = 1; i <= std::min<int64_t>(n, 128); ++i) {
    if (n % i == 0) divisors.push_back(i);
  }
  return divisors;
}

class Binder {
 public:
  Binder(const Layout& layout, const AxisSizes& sizes, const BindOptions& options)
      : layout_(layout), sizes_(sizes), options_(options) {}

  BoundLayout bind() {
    // Sizes first: they give the shape, and with it the stride of each stored axis.
    for (const LayoutNode& node : layout_.axes) bound_.shape.push_back(size_of({&node, 1}));
    const std::vector<int64_t> strides = axis_strides();
    std::vector<Partial> partials(1);
    partials[0].tensor = layout_.tensor;
    for (size_t i = layout_.axes.size(); i-- > 0;) {
      int64_t stride = strides[i];
      place({&layout_.axes[i], 1}, stride, partials);
    }
    for (const Partial& partial : partials) bound_.pieces.push_back(finish(partial));
    return std::move(bound_);
  }

 private:
  [[noreturn]] void refuse_tp(const std::string& what, const std::vector<int64_t>& work) const {
    throw_usage("--tp " + std::to_string(options_.tp), what, "use " + list_sizes(work));
  }

  std::vector<int64_t> head_splits() const {
    std::vector<int64_t> work;
    const int64_t kv = sizes_.get("kv"), heads = kv * sizes_.get("group");
    for (const int64_t tp : small_divisors(heads)) {
      if (kv % tp == 0 || tp % kv == 0) work.push_back(tp);
    }
    return work;
  }

  /// Sizes that divide `n` and split the heads too: the hint must not lead to the next refusal.
  std::vector<int64_t> sizes_for_heads_and(int64_t n) const {
    std::vector<int64_t> work;
    for (const int64_t tp : head_splits()) {
      if (n % tp == 0) work.push_back(tp);
    }
    return work;
  }

  /// The ranges of a `heads` or `kv` factor split over tp.
  std::vector<Range> split_heads(bool with_group) const {
    const int64_t kv = sizes_.get("kv"), group = sizes_.get("group"), tp = options_.tp;
    Range kv_range{"kv", 0, kv, kv}, group_range{"group", 0, group, group};
    if (kv % tp == 0) {
      kv_range.n = kv / tp;
      kv_range.lo = options_.rank * kv_range.n;
    } else if (tp % kv == 0 && (kv * group) % tp == 0) {
      const int64_t share = tp / kv;  // ranks that read the same KV head
      kv_range.n = 1;
      kv_range.lo = options_.rank / share;
      group_range.n = group / share;
      group_range.lo = options_.rank % share * group_range.n;
    } else {
      refuse_tp("the model has " + std::to_string(kv * group) + " attention heads and " +
                    std::to_string(kv) + " key-value heads, which do not split that way",
                head_splits());
    }
    kv_range.stored = kv_range.n;
    group_range.stored = group_range.n;
    if (with_group) return {kv_range, group_range};
    return {kv_range};
  }

  std::vector<Range> ranges_of(const Factor& factor) const {
    if (factor.tensor_parallel && options_.tp > 1 && factor.num_parts == 1 &&
        (factor.name == "heads" || factor.name == "kv")) {
      return split_heads(factor.name == "heads");
    }
    std::vector<std::string> names = {factor.name};
    if (factor.name == "heads") names = {"kv", "group"};
    if (factor.name == "d") names = {"two", "half"};
    std::vector<Range> ranges;
    for (const std::string& name : names) {
      const int64_t size = sizes_.get(name);
      ranges.push_back({name, 0, size, size});
    }
    Range& slowest = ranges.front();
    if (factor.num_parts > 1) {
      if (slowest.n % factor.num_parts != 0) {
        throw_invalid("layout '" + layout_.text + "'",
                      "axis '" + slowest.axis + "' of " + std::to_string(slowest.n) +
                          " does not divide into " + std::to_string(factor.num_parts) + " parts");
      }
      slowest.n /= factor.num_parts;
      slowest.lo = factor.part * slowest.n;
      slowest.stored = slowest.n;
    }
    if (factor.padded) {
      pad(factor, slowest);
    } else if (factor.tensor_parallel && options_.tp > 1) {
      if (slowest.n % options_.tp != 0) {
        refuse_tp("axis '" + slowest.axis + "' of " + std::to_string(slowest.n) +
                      " is not divisible by it",
                  sizes_for_heads_and(slowest.n));
      }
      slowest.n /= options_.tp;
      slowest.lo += options_.rank * slowest.n;
      slowest.stored = slowest.n;
    }
    return ranges;
  }

  /// A `~` axis: every rank stores the same length, the last ones may hold padding.
  void pad(const Factor& factor, Range& range) const {
    const int64_t tp = factor.tensor_parallel ? options_.tp : 1;
    const int64_t rank = factor.tensor_parallel ? options_.rank : 0;
    int64_t stored = (range.n + tp - 1) / tp;
    const auto it = options_.padded_sizes.find(factor.name);
    if (it != options_.padded_sizes.end()) stored = std::max(stored, (it->second + tp - 1) / tp);
    if (options_.stored_shape != nullptr && padded_stored_length_ > 0) {
      stored = padded_stored_length_;
    }
    const int64_t begin = std::min(range.n, rank * stored);
    range.lo += begin;
    range.n = std::min(range.n - begin, stored);
    range.stored = stored;
  }

  int64_t size_of(std::span<const LayoutNode> nodes) {
    int64_t size = 1;
    for (const LayoutNode& node : nodes) {
      int64_t factor = 1;
      switch (node.kind) {
        case LayoutNode::Kind::kFactor:
          if (node.factor.padded) note_padded_length();
          for (const Range& range : ranges_of(node.factor)) factor *= range.stored;
          break;
        case LayoutNode::Kind::kGroup:
          factor = size_of(node.group);
          break;
        case LayoutNode::Kind::kCat:
          factor = 0;
          for (const LayoutNode::Branch& branch : node.branches) factor += size_of(branch.axes);
          break;
      }
      if (__builtin_mul_overflow(size, factor, &size)) {
        throw_invalid("layout '" + layout_.text + "'", "the tensor's size overflows");
      }
    }
    return size;
  }

  /// A source's `~` axis is as long as the file says; it must be a stored axis of its own.
  void note_padded_length() {
    if (options_.stored_shape == nullptr) return;
    const size_t axis = bound_.shape.size();
    if (axis < options_.stored_shape->size() &&
        options_.stored_shape->size() == layout_.axes.size()) {
      padded_stored_length_ = (*options_.stored_shape)[axis];
    }
  }

  static Shape without_ones(const Shape& shape) {
    Shape kept;
    std::copy_if(shape.begin(), shape.end(), std::back_inserter(kept),
                 [](int64_t s) { return s != 1; });
    return kept;
  }

  std::string shape_text(const Shape& shape) const {
    std::string text = "[";
    for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + "]";
  }

  std::vector<int64_t> row_major(const Shape& shape) const {
    std::vector<int64_t> strides(shape.size());
    int64_t stride = 1;
    for (size_t i = shape.size(); i-- > 0;) {
      strides[i] = stride;
      stride *= shape[i];
    }
    return strides;
  }

  /// The stride of each axis of the layout in the stored tensor.
  std::vector<int64_t> axis_strides() const {
    std::vector<int64_t> strides = row_major(bound_.shape);
    if (options_.stored_shape == nullptr) return strides;
    const Shape& stored = *options_.stored_shape;
    const bool flat = stored.size() == 1 && checked_num_elements(bound_.shape) == stored[0];
    if (!flat && without_ones(stored) != without_ones(bound_.shape)) {
      throw_invalid("", "shape " + shape_text(bound_.shape) + " expected, the file has " +
                            shape_text(stored));
    }
    if (options_.stored_strides == nullptr || options_.stored_strides->empty()) return strides;
    if (flat && bound_.shape.size() > 1) {
      for (int64_t& stride : strides) stride *= options_.stored_strides->front();
      return strides;
    }
    size_t next = 0;
    for (size_t i = 0; i < bound_.shape.size(); ++i) {
      if (bound_.shape[i] == 1) continue;
      while (stored[next] == 1) ++next;
      strides[i] = (*options_.stored_strides)[next++];
    }
    return strides;
  }

  /// Places `nodes` (the last is the fastest) from `stride` up, in every partial piece.
  void place(std::span<const LayoutNode> nodes, int64_t& stride, std::vector<Partial>& partials) {
    for (size_t i = nodes.size(); i-- > 0;) {
      const LayoutNode& node = nodes[i];
      if (node.kind == LayoutNode::Kind::kGroup) {
        place(node.group, stride, partials);
      } else if (node.kind == LayoutNode::Kind::kCat) {
        place_cat(node, stride, partials);
      } else {
        std::vector<Range> ranges = ranges_of(node.factor);
        for (size_t r = ranges.size(); r-- > 0;) {
          for (Partial& partial : partials) {
            partial.axes[ranges[r].axis] = {ranges[r].lo, ranges[r].n, stride};
          }
          stride *= ranges[r].stored;
        }
      }
    }
  }

  void place_cat(const LayoutNode& node, int64_t& stride, std::vector<Partial>& partials) {
    std::vector<Partial> out;
    int64_t before = 0;  // elements of the earlier branches, in units of `stride`
    for (const LayoutNode::Branch& branch : node.branches) {
      std::vector<Partial> members = partials;
      int64_t inner = stride;
      place(branch.axes, inner, members);
      for (Partial& member : members) {
        member.tensor = branch.tensor;
        member.offset += before * stride;
        out.push_back(std::move(member));
      }
      before += size_of(branch.axes);
    }
    stride *= before;
    partials = std::move(out);
  }

  Piece finish(const Partial& partial) const {
    Piece piece;
    piece.tensor = partial.tensor;
    piece.offset = partial.offset;
    for (const std::string& axis : split_words(find_canonical(partial.tensor)->axes)) {
      const auto it = partial.axes.find(axis);
      if (it == partial.axes.end()) {
        if (sizes_.get(axis) != 1) {
          throw_invalid("layout '" + layout_.text + "'",
                        "axis '" + axis + "' of '" + partial.tensor + "' is missing");
        }
        piece.lo.push_back(0);
        piece.n.push_back(1);
        piece.stride.push_back(0);
      } else {
        piece.lo.push_back(it->second.lo);
        piece.n.push_back(it->second.n);
        piece.stride.push_back(it->second.stride);
      }
    }
    return piece;
  }

  const Layout& layout_;
  const AxisSizes& sizes_;
  const BindOptions& options_;
  BoundLayout bound_;
  int64_t padded_stored_length_ = 0;
};

}  // namespace

int64_t Piece::num_elements() const {
  int64_t count = 1;
  for (const int64_t extent : n) count *= extent;
  return count;
}

BoundLayout bind_layout(const Layout& layout, const AxisSizes& sizes, const BindOptions& options) {
  if (options.tp < 1 || options.rank < 0 || options.rank >= options.tp) {
    throw Error(ErrorCode::kInternal, "tensor-parallel rank out of range", layout.text);
  }
  return Binder(layout, sizes, options).bind();
}

}  // namespace llmctl::reshard
