#include "kernels/copy_box.h"

#include "formats/core/error.h"
#include "kernels/cpu/convert_runs.h"

namespace llmctl::kernels {

CastStats copy_box_reference(void* dst, DType dst_dtype, const void* src, DType src_dtype,
                             const Box& box, Overflow overflow) {
  CastStats stats;
  for (int axis = 0; axis < box.num_axes; ++axis) {
    if (box.extents[axis] <= 0) return stats;
  }
  const auto dst_width = static_cast<int64_t>(dtype_bytes(dst_dtype));
  const auto src_width = static_cast<int64_t>(dtype_bytes(src_dtype));
  const cpu::ConvertRun cast =
      src_dtype == dst_dtype ? nullptr : cpu::generic_convert_run(src_dtype, dst_dtype);
  if (src_dtype != dst_dtype && cast == nullptr) {
    throw Error(ErrorCode::kInternal, "no cast between these dtypes");
  }
  int64_t index[kMaxBoxAxes] = {};
  for (;;) {
    int64_t dst_at = 0;
    int64_t src_at = 0;
    for (int axis = 0; axis < box.num_axes; ++axis) {
      dst_at += index[axis] * box.dst_strides[axis];
      src_at += index[axis] * box.src_strides[axis];
    }
    auto* out = static_cast<unsigned char*>(dst) + dst_at * dst_width;
    const auto* in = static_cast<const unsigned char*>(src) + src_at * src_width;
    if (cast == nullptr) {
      std::memcpy(out, in, static_cast<size_t>(src_width));
    } else {
      stats.overflowed += cast(out, in, 1, overflow == Overflow::kClamp);
    }
    int axis = box.num_axes - 1;
    while (axis >= 0 && ++index[axis] == box.extents[axis]) index[axis--] = 0;
    if (axis < 0) return stats;
  }
}

}  // namespace llmctl::kernels
