#include "formats/core/dtype.h"

#include <array>

namespace llmctl {
namespace {

constexpr std::array kDTypes = {
    DTypeInfo{DType::F64, "F64", "float64", "", 64, true},
    DTypeInfo{DType::F32, "F32", "float32", "fp32", 32, true},
    DTypeInfo{DType::F16, "F16", "float16", "fp16", 16, true},
    DTypeInfo{DType::BF16, "BF16", "bfloat16", "bf16", 16, true},
    DTypeInfo{DType::F8_E4M3, "F8_E4M3", "float8_e4m3fn", "", 8, true},
    DTypeInfo{DType::F8_E5M2, "F8_E5M2", "float8_e5m2", "", 8, true},
    DTypeInfo{DType::I64, "I64", "int64", "", 64, false},
    DTypeInfo{DType::I32, "I32", "int32", "", 32, false},
    DTypeInfo{DType::I16, "I16", "int16", "", 16, false},
    DTypeInfo{DType::I8, "I8", "int8", "", 8, false},
    DTypeInfo{DType::U64, "U64", "uint64", "", 64, false},
    DTypeInfo{DType::U32, "U32", "uint32", "", 32, false},
    DTypeInfo{DType::U16, "U16", "uint16", "", 16, false},
    DTypeInfo{DType::U8, "U8", "uint8", "", 8, false},
    DTypeInfo{DType::BOOL, "BOOL", "bool", "", 8, false},
};

}  // namespace

std::span<const DTypeInfo> dtype_table() { return kDTypes; }

const DTypeInfo& dtype_info(DType dtype) { return kDTypes[static_cast<size_t>(dtype)]; }

std::optional<DType> find_dtype(std::string_view name) {
  for (const DTypeInfo& info : kDTypes) {
    if (name == info.name || name == info.torch || (!info.flag.empty() && name == info.flag)) {
      return info.dtype;
    }
  }
  return std::nullopt;
}

}  // namespace llmctl
