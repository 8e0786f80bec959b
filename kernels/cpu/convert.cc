#include "kernels/convert.h"

#include <string>

#include "formats/core/error.h"
#include "kernels/cpu/dispatch.h"

namespace llmctl::kernels {

cpu::ConvertRun cpu::find_convert_run(Isa isa, DType src, DType dst) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) {
    if (const ConvertRun run = avx512_convert_run(src, dst)) return run;
  }
  if (isa == Isa::kAvx512 || isa == Isa::kAvx2) {
    if (const ConvertRun run = avx2_convert_run(src, dst)) return run;
  }
#endif
  return generic_convert_run(src, dst);
}

CastStats cpu::convert(Isa isa, void* dst, DType dst_dtype, const void* src, DType src_dtype,
                       int64_t count, Overflow overflow) {
  CastStats stats;
  if (count <= 0) return stats;
  if (src_dtype == dst_dtype) {
    std::memcpy(dst, src, static_cast<size_t>(count) * dtype_bytes(src_dtype));
    return stats;
  }
  const ConvertRun run = find_convert_run(isa, src_dtype, dst_dtype);
  if (run == nullptr) {
    throw Error(ErrorCode::kInternal, "no cast from " + std::string(dtype_name(src_dtype)) +
                                          " to " + std::string(dtype_name(dst_dtype)));
  }
  stats.overflowed = run(dst, src, count, overflow == Overflow::kClamp);
  return stats;
}

CastStats convert(void* dst, DType dst_dtype, const void* src, DType src_dtype, int64_t count,
                  Overflow overflow) {
  return cpu::convert(active_isa(), dst, dst_dtype, src, src_dtype, count, overflow);
}

}  // namespace llmctl::kernels
