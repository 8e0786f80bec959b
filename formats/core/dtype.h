// Element types, spelled as on disk, and the table that every format and kernel test iterates.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace llmctl {

enum class DType : uint8_t {  // clang-format off
  F64, F32, F16, BF16, F8_E4M3, F8_E5M2,
  I64, I32, I16, I8, U64, U32, U16, U8, BOOL,
};  // clang-format on

struct DTypeInfo {
  DType dtype;
  std::string_view name;   ///< safetensors spelling, e.g. "BF16"
  std::string_view torch;  ///< torch spelling without the module, e.g. "bfloat16"
  std::string_view flag;   ///< `--dtype` spelling, empty where no command writes it
  int bits;
  bool is_float;
};

/// Every dtype, in enumerator order.
std::span<const DTypeInfo> dtype_table();

const DTypeInfo& dtype_info(DType dtype);
inline size_t dtype_bytes(DType dtype) { return static_cast<size_t>(dtype_info(dtype).bits) / 8; }
inline std::string_view dtype_name(DType dtype) { return dtype_info(dtype).name; }

/// By safetensors name ("F16"), torch name ("float16") or flag ("fp16").
std::optional<DType> find_dtype(std::string_view name);

}  // namespace llmctl
