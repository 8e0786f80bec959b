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

/// Below this many elements along either axis the tile transpose would be all edges.
constexpr int64_t kMinTransposeExtent = 4;
/// Elements of one source run that the gather loop finishes before it moves on.
constexpr int64_t kGatherBlock = 64;
/// Side of the tile that is cast into scratch before it is transposed: 64 x 64 elements of at most
/// 8 bytes stay in L1 or close by.
constexpr int64_t kCastTile = 64;
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
    Axis& last = axes_[num_axes_ - 1];
    if (last.dst_stride == dst_width_ && last.src_stride == src_width_) {
      copy_runs(dst, src);
    } else if (const int source_axis = find_source_axis();
               last.dst_stride == dst_width_ && source_axis >= 0 &&
               last.extent >= kMinTransposeExtent &&
               axes_[source_axis].extent >= kMinTransposeExtent) {
      std::rotate(axes_ + source_axis, axes_ + source_axis + 1, axes_ + num_axes_ - 1);
      transpose_planes(dst, src);
    } else {
      if (source_axis >= 0) {
        std::rotate(axes_ + source_axis, axes_ + source_axis + 1, axes_ + num_axes_);
      }
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

  /// The axis along which the source is contiguous, or -1.
  int find_source_axis() const {
    for (int i = num_axes_ - 1; i >= 0; --i) {
      if (axes_[i].src_stride == src_width_) return i;
    }
    return -1;
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
    const auto bytes = static_cast<size_t>(count * src_width_);
    for_each_outer(num_axes_ - 1, dst, src, [&](char* d, const char* s) {
      if (cast_ == nullptr) {
        std::memcpy(d, s, bytes);
      } else {
        overflowed_ += cast_(d, s, count, clamp_);
      }
    });
  }

  /// The last two axes are (source contiguous, target contiguous).
  void transpose_planes(char* dst, const char* src) {
    const Axis& cols = axes_[num_axes_ - 2];
    const Axis& rows = axes_[num_axes_ - 1];
    const cpu::Transpose transpose = cpu::find_transpose(isa_, dst_width_);
    const bool streaming = total_ * dst_width_ >= kStreamingBytes;
    for_each_outer(num_axes_ - 2, dst, src, [&](char* d, const char* s) {
      if (cast_ == nullptr) {
        transpose(d, cols.dst_stride, s, rows.src_stride, rows.extent, cols.extent, streaming);
      } else {
        cast_and_transpose(d, s, rows, cols, transpose, streaming);
      }
    });
  }

  void cast_and_transpose(char* dst, const char* src, const Axis& rows, const Axis& cols,
                          cpu::Transpose transpose, bool streaming) {
    alignas(64) char tile[kCastTile * kCastTile * 8];
    const int64_t pitch = kCastTile * dst_width_;
    for (int64_t r0 = 0; r0 < rows.extent; r0 += kCastTile) {
      const int64_t num_rows = std::min(kCastTile, rows.extent - r0);
      for (int64_t c0 = 0; c0 < cols.extent; c0 += kCastTile) {
        const int64_t num_cols = std::min(kCastTile, cols.extent - c0);
        for (int64_t r = 0; r < num_rows; ++r) {
          overflowed_ += cast_(tile + r * pitch, src + (r0 + r) * rows.src_stride + c0 * src_width_,
                               num_cols, clamp_);
        }
        transpose(dst + c0 * cols.dst_stride + r0 * dst_width_, cols.dst_stride, tile, pitch,
                  num_rows, num_cols, streaming);
      }
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
