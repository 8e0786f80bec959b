// The strided copy, as a handful of two-dimensional kernels: every box is first brought to its
// simplest equal, then its two or three innermost axes decide which kernel runs.
#include "kernels/copy_box.h"

#include <algorithm>
#include <cstdlib>
#include <string>

#include "formats/core/error.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/transpose.h"

namespace llmctl::kernels {
namespace {

struct Axis {
  int64_t extent = 1, src_stride = 0, dst_stride = 0;  // strides in bytes
};

/// Axes that follow one another in memory, fastest first, seen as one.
struct Run {
  Axis axes[kMaxBoxAxes];
  int num_axes = 0;
  int64_t extent = 1;

  void push_outer(const Axis& axis) {
    axes[num_axes++] = axis;
    extent *= axis.extent;
  }
  int64_t src_offset(int64_t index) const { return offset(index, &Axis::src_stride); }
  int64_t dst_offset(int64_t index) const { return offset(index, &Axis::dst_stride); }

 private:
  int64_t offset(int64_t index, int64_t Axis::*stride) const {
    int64_t at = 0;
    for (int i = 0; i < num_axes; ++i) {
      at += index % axes[i].extent * (axes[i].*stride);
      index /= axes[i].extent;
    }
    return at;
  }
};

/// Below this many elements along either axis the tile transpose would be all edges.
constexpr int64_t kMinTransposeExtent = 4;
/// Elements of one source run that the gather loop finishes before it moves on.
constexpr int64_t kGatherBlock = 64;
/// Side of the tile that is staged in scratch: 64 x 64 elements of at most 8 bytes stay in L1 or
/// close by.
constexpr int64_t kTile = 64;
/// Targets larger than this leave the caches before anyone reads them.
constexpr int64_t kStreamingBytes = int64_t{4} << 20;

class BoxCopy {
 public:
  BoxCopy(Isa isa, DType dst_dtype, DType src_dtype, bool clamp)
      : isa_(isa),
        dst_width_(static_cast<int64_t>(dtype_bytes(dst_dtype))),
        src_width_(static_cast<int64_t>(dtype_bytes(src_dtype))),
        clamp_(clamp) {
    if (src_dtype != dst_dtype) {
      cast_ = cpu::find_convert_run(isa, src_dtype, dst_dtype);
      cast_one_ = cpu::generic_convert_run(src_dtype, dst_dtype);
      if (cast_ == nullptr) {
        throw Error(ErrorCode::kInternal, "no cast from " + std::string(dtype_name(src_dtype)) +
                                              " to " + std::string(dtype_name(dst_dtype)));
      }
    }
  }

  uint64_t run(char* dst, const char* src, const Box& box) {
    if (!normalise(box)) return 0;
    const Axis& last = axes_[num_axes_ - 1];
    if (last.dst_stride == dst_width_ && last.src_stride == src_width_) {
      copy_runs(dst, src);
    } else if (find_planes()) {
      transpose_planes(dst, src);
    } else {
      gather(dst, src);
    }
    return overflowed_;
  }

 private:
  /// Drops axes of one element, puts the slowest target axis first and merges axes that are one
  /// run in both arrays. False when the box is empty.
  bool normalise(const Box& box) {
    Axis found[kMaxBoxAxes];
    int count = 0;
    total_ = 1;
    for (int i = 0; i < box.num_axes; ++i) {
      if (box.extents[i] <= 0) return false;
      total_ *= box.extents[i];
      if (box.extents[i] == 1) continue;
      found[count++] = {box.extents[i], box.src_strides[i] * src_width_,
                        box.dst_strides[i] * dst_width_};
    }
    std::stable_sort(found, found + count, [](const Axis& a, const Axis& b) {
      return std::llabs(a.dst_stride) > std::llabs(b.dst_stride);
    });
    num_axes_ = 0;
    for (int i = 0; i < count; ++i) {
      Axis* outer = num_axes_ > 0 ? &axes_[num_axes_ - 1] : nullptr;
      if (outer != nullptr && outer->src_stride == found[i].extent * found[i].src_stride &&
          outer->dst_stride == found[i].extent * found[i].dst_stride) {
        *outer = {outer->extent * found[i].extent, found[i].src_stride, found[i].dst_stride};
      } else {
        axes_[num_axes_++] = found[i];
      }
    }
    if (num_axes_ == 0) axes_[num_axes_++] = {1, src_width_, dst_width_};
    return true;
  }

  /// Splits the axes into `rows_`, which together are one run of the target, `cols_`, which
  /// together are one run of the source, and what is left in axes_. False when either run is too
  /// short to transpose; then axes_ ends with the source's contiguous axis, if there is one.
  bool find_planes() {
    int source_axis = num_axes_ - 1;
    while (source_axis >= 0 && axes_[source_axis].src_stride != src_width_) --source_axis;
    if (source_axis < 0) return false;
    std::rotate(axes_ + source_axis, axes_ + source_axis + 1, axes_ + num_axes_);
    if (num_axes_ < 2) return false;

    Run rows;
    Run cols;
    cols.push_outer(axes_[num_axes_ - 1]);
    int left = num_axes_ - 1;
    if (axes_[left - 1].dst_stride != dst_width_) return false;
    rows.push_outer(axes_[left - 1]);
    --left;
    // Axes are in target order, slowest first: those that continue the target's run come next.
    while (left > 0 && axes_[left - 1].dst_stride == rows.extent * dst_width_) {
      rows.push_outer(axes_[left - 1]);
      --left;
    }
    for (int i = left - 1; i >= 0;) {
      if (axes_[i].src_stride != cols.extent * src_width_) {
        --i;
        continue;
      }
      cols.push_outer(axes_[i]);
      std::rotate(axes_ + i, axes_ + i + 1, axes_ + left);
      --left;
      i = left - 1;
    }
    if (rows.extent < kMinTransposeExtent || cols.extent < kMinTransposeExtent) return false;
    rows_ = rows;
    cols_ = cols;
    num_axes_ = left;
    return true;
  }

  /// Calls body(dst, src) for every index of the first `num_outer` axes, in target order.
  template <typename Body>
  void for_each_outer(int num_outer, char* dst, const char* src, const Body& body) const {
    int64_t index[kMaxBoxAxes] = {};
    for (;;) {
      body(dst, src);
      int i = num_outer - 1;
      for (; i >= 0; --i) {
        dst += axes_[i].dst_stride;
        src += axes_[i].src_stride;
        if (++index[i] < axes_[i].extent) break;
        dst -= axes_[i].extent * axes_[i].dst_stride;
        src -= axes_[i].extent * axes_[i].src_stride;
        index[i] = 0;
      }
      if (i < 0) return;
    }
  }

  void copy_runs(char* dst, const char* src) {
    const int64_t count = axes_[num_axes_ - 1].extent;
    // The axis that is a big step in both arrays goes outside. Where two are next to each other in
    // one array each, as in a split of columns, the shorter goes inside: one array is then walked
    // in order, the other in as many streams as that axis is long, which is up to twice as fast.
    const auto step = [&](const Axis& axis) {
      return std::min(std::llabs(axis.src_stride) / src_width_,
                      std::llabs(axis.dst_stride) / dst_width_);
    };
    std::stable_sort(axes_, axes_ + num_axes_ - 1, [&](const Axis& a, const Axis& b) {
      return step(a) != step(b) ? step(a) > step(b) : a.extent > b.extent;
    });
    for_each_outer(num_axes_ - 1, dst, src, [&](char* d, const char* s) { copy_run(d, s, count); });
  }

  void transpose_planes(char* dst, const char* src) {
    const cpu::Transpose transpose = cpu::find_transpose(isa_, dst_width_);
    const bool streaming = total_ * dst_width_ >= kStreamingBytes;
    const bool direct = cast_ == nullptr && rows_.num_axes == 1 && cols_.num_axes == 1;
    for_each_outer(num_axes_, dst, src, [&](char* d, const char* s) {
      if (direct) {
        transpose(d, cols_.axes[0].dst_stride, s, rows_.axes[0].src_stride, rows_.extent,
                  cols_.extent, streaming);
      } else {
        stage_and_transpose(d, s, transpose, streaming);
      }
    });
    if (streaming) cpu::finish_streaming();
  }

  /// Tile by tile: source runs are cast into scratch, and transposed from there into the target,
  /// or, where the tile's columns do not lie evenly spaced there, through a second scratch.
  void stage_and_transpose(char* dst, const char* src, cpu::Transpose transpose, bool streaming) {
    alignas(64) char staged[kTile * kTile * 8];
    alignas(64) char turned[kTile * kTile * 8];
    const int64_t pitch = kTile * dst_width_;
    const bool even = cols_.num_axes == 1;
    for (int64_t r0 = 0; r0 < rows_.extent; r0 += kTile) {
      const int64_t num_rows = std::min(kTile, rows_.extent - r0);
      for (int64_t c0 = 0; c0 < cols_.extent; c0 += kTile) {
        const int64_t num_cols = std::min(kTile, cols_.extent - c0);
        for (int64_t r = 0; r < num_rows; ++r) {
          copy_run(staged + r * pitch, src + rows_.src_offset(r0 + r) + c0 * src_width_, num_cols);
        }
        char* out = dst + r0 * dst_width_;
        if (even) {
          const int64_t step = cols_.axes[0].dst_stride;
          transpose(out + c0 * step, step, staged, pitch, num_rows, num_cols, streaming);
          continue;
        }
        transpose(turned, pitch, staged, pitch, num_rows, num_cols, false);
        for (int64_t c = 0; c < num_cols; ++c) {
          std::memcpy(out + cols_.dst_offset(c0 + c), turned + c * pitch,
                      static_cast<size_t>(num_rows * dst_width_));
        }
      }
    }
  }

  void copy_run(char* dst, const char* src, int64_t count) {
    if (cast_ == nullptr) {
      std::memcpy(dst, src, static_cast<size_t>(count * src_width_));
    } else {
      overflowed_ += cast_(dst, src, count, clamp_);
    }
  }

  /// Any strides, element by element. The last axis is the source's contiguous one where there is
  /// one; it is cut into blocks, and the axis before it runs inside a block, so that the lines of
  /// both arrays are still cached when their neighbours are wanted.
  void gather(char* dst, const char* src) {
    const Axis inner = axes_[num_axes_ - 1];
    const Axis middle = num_axes_ >= 2 ? axes_[num_axes_ - 2] : Axis{};
    for_each_outer(std::max(0, num_axes_ - 2), dst, src, [&](char* d, const char* s) {
      for (int64_t i0 = 0; i0 < inner.extent; i0 += kGatherBlock) {
        const int64_t count = std::min(kGatherBlock, inner.extent - i0);
        for (int64_t m = 0; m < middle.extent; ++m) {
          gather_run(d + m * middle.dst_stride + i0 * inner.dst_stride,
                     s + m * middle.src_stride + i0 * inner.src_stride, inner, count);
        }
      }
    });
  }

  void gather_run(char* dst, const char* src, const Axis& axis, int64_t count) {
    if (cast_ != nullptr) {
      for (int64_t i = 0; i < count; ++i) {
        overflowed_ += cast_one_(dst + i * axis.dst_stride, src + i * axis.src_stride, 1, clamp_);
      }
      return;
    }
    switch (src_width_) {
      case 1:
        return gather_elements<1>(dst, src, axis, count);
      case 2:
        return gather_elements<2>(dst, src, axis, count);
      case 4:
        return gather_elements<4>(dst, src, axis, count);
      default:
        return gather_elements<8>(dst, src, axis, count);
    }
  }

  template <size_t kWidth>
  static void gather_elements(char* dst, const char* src, const Axis& axis, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(dst + i * axis.dst_stride, src + i * axis.src_stride, kWidth);
    }
  }

  Isa isa_;
  int64_t dst_width_, src_width_;
  bool clamp_;
  cpu::ConvertRun cast_ = nullptr, cast_one_ = nullptr;
  Axis axes_[kMaxBoxAxes];
  int num_axes_ = 0;
  Run rows_, cols_;
  int64_t total_ = 0;
  uint64_t overflowed_ = 0;
};

}  // namespace

CastStats cpu::copy_box(Isa isa, void* dst, DType dst_dtype, const void* src, DType src_dtype,
                        const Box& box, Overflow overflow) {
  BoxCopy copy(isa, dst_dtype, src_dtype, overflow == Overflow::kClamp);
  CastStats stats;
  stats.overflowed = copy.run(static_cast<char*>(dst), static_cast<const char*>(src), box);
  return stats;
}

CastStats copy_box(void* dst, DType dst_dtype, const void* src, DType src_dtype, const Box& box,
                   Overflow overflow) {
  return cpu::copy_box(active_isa(), dst, dst_dtype, src, src_dtype, box, overflow);
}

}  // namespace llmctl::kernels
