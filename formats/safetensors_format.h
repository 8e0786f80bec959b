// Inside formats/ only: what reading and writing safetensors share.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "formats/core/dtype.h"
#include "formats/core/error.h"

namespace llmctl::formats {

/// The library's own limit.
constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;

/// The library's dtype list in its sort order; files hold tensors in descending order of it.
/// Kinds without an enumerator are valid safetensors that llmctl does not read.
struct SafetensorsDType {
  std::string_view name;
  std::optional<DType> dtype;
};
inline constexpr std::array kSafetensorsDTypes = {
    SafetensorsDType{"BOOL", DType::BOOL},
    SafetensorsDType{"F4", std::nullopt},
    SafetensorsDType{"F6_E2M3", std::nullopt},
    SafetensorsDType{"F6_E3M2", std::nullopt},
    SafetensorsDType{"U8", DType::U8},
    SafetensorsDType{"I8", DType::I8},
    SafetensorsDType{"F8_E5M2", DType::F8_E5M2},
    SafetensorsDType{"F8_E4M3", DType::F8_E4M3},
    SafetensorsDType{"F8_E8M0", std::nullopt},
    SafetensorsDType{"F8_E4M3FNUZ", std::nullopt},
    SafetensorsDType{"F8_E5M2FNUZ", std::nullopt},
    SafetensorsDType{"I16", DType::I16},
    SafetensorsDType{"U16", DType::U16},
    SafetensorsDType{"F16", DType::F16},
    SafetensorsDType{"BF16", DType::BF16},
    SafetensorsDType{"I32", DType::I32},
    SafetensorsDType{"U32", DType::U32},
    SafetensorsDType{"F32", DType::F32},
    SafetensorsDType{"C64", std::nullopt},
    SafetensorsDType{"F64", DType::F64},
    SafetensorsDType{"I64", DType::I64},
    SafetensorsDType{"U64", DType::U64},
};

inline std::string in_quotes(const std::string& name) { return "'" + printable(name) + "'"; }

}  // namespace llmctl::formats
