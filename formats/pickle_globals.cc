#include "formats/pickle_globals.h"

#include <algorithm>
#include <array>

namespace llmctl::formats {
namespace {

constexpr std::array kScalarTypes = {
    TorchScalarType{"float64", "DoubleStorage", 8, DType::F64},
    TorchScalarType{"float32", "FloatStorage", 4, DType::F32},
    TorchScalarType{"float16", "HalfStorage", 2, DType::F16},
    TorchScalarType{"bfloat16", "BFloat16Storage", 2, DType::BF16},
    TorchScalarType{"int64", "LongStorage", 8, DType::I64},
    TorchScalarType{"int32", "IntStorage", 4, DType::I32},
    TorchScalarType{"int16", "ShortStorage", 2, DType::I16},
    TorchScalarType{"int8", "CharStorage", 1, DType::I8},
    TorchScalarType{"uint8", "ByteStorage", 1, DType::U8},
    TorchScalarType{"bool", "BoolStorage", 1, DType::BOOL},
    TorchScalarType{"uint16", "", 2, DType::U16},
    TorchScalarType{"uint32", "", 4, DType::U32},
    TorchScalarType{"uint64", "", 8, DType::U64},
    TorchScalarType{"float8_e4m3fn", "", 1, DType::F8_E4M3},
    TorchScalarType{"float8_e5m2", "", 1, DType::F8_E5M2},
    TorchScalarType{"float8_e4m3fnuz", "", 1, std::nullopt},
    TorchScalarType{"float8_e5m2fnuz", "", 1, std::nullopt},
    TorchScalarType{"float8_e8m0fnu", "", 1, std::nullopt},
    TorchScalarType{"float4_e2m1fn_x2", "", 1, std::nullopt},
    TorchScalarType{"complex32", "", 4, std::nullopt},
    TorchScalarType{"complex64", "ComplexFloatStorage", 8, std::nullopt},
    TorchScalarType{"complex128", "ComplexDoubleStorage", 16, std::nullopt},
    TorchScalarType{"qint8", "QInt8Storage", 1, std::nullopt},
    TorchScalarType{"quint8", "QUInt8Storage", 1, std::nullopt},
    TorchScalarType{"qint32", "QInt32Storage", 4, std::nullopt},
    TorchScalarType{"quint4x2", "QUInt4x2Storage", 1, std::nullopt},
    TorchScalarType{"quint2x4", "QUInt2x4Storage", 1, std::nullopt},
    TorchScalarType{"bits8", "", 1, std::nullopt},
    TorchScalarType{"bits16", "", 2, std::nullopt},
    TorchScalarType{"bits1x8", "", 1, std::nullopt},
    TorchScalarType{"bits2x4", "", 1, std::nullopt},
    TorchScalarType{"bits4x2", "", 1, std::nullopt},
};

template <typename Predicate>
std::optional<uint8_t> find_scalar_type(Predicate&& matches) {
  const auto it = std::find_if(kScalarTypes.begin(), kScalarTypes.end(), matches);
  if (it == kScalarTypes.end()) return std::nullopt;
  return static_cast<uint8_t>(it - kScalarTypes.begin());
}

struct KnownRow {
  std::string_view module, name;
  GlobalMeaning meaning;
};

constexpr KnownRow kKnown[] = {
    {"torch._utils", "_rebuild_tensor_v2", {KnownGlobal::kRebuildTensor, 2}},
    {"torch._utils", "_rebuild_tensor_v3", {KnownGlobal::kRebuildTensor, 3}},
    {"torch._utils", "_rebuild_tensor", {KnownGlobal::kRebuildTensor, 1}},
    {"torch._utils", "_rebuild_parameter", {KnownGlobal::kRebuildParameter, 0}},
    {"torch._utils", "_rebuild_parameter_with_state", {KnownGlobal::kRebuildParameter, 0}},
    {"torch._tensor", "_rebuild_from_type_v2", {KnownGlobal::kRebuildFromType, 0}},
    {"torch", "Tensor", {KnownGlobal::kTensorClass, 0}},
    {"torch._tensor", "Tensor", {KnownGlobal::kTensorClass, 0}},
    {"torch.nn.parameter", "Parameter", {KnownGlobal::kTensorClass, 0}},
    {"torch.nn.parameter", "Buffer", {KnownGlobal::kTensorClass, 0}},
    {"torch", "Size", {KnownGlobal::kTorchSize, 0}},
    {"collections", "OrderedDict", {KnownGlobal::kOrderedDict, 0}},
    {"collections", "Counter", {KnownGlobal::kOrderedDict, 0}},
    {"collections", "defaultdict", {KnownGlobal::kOrderedDict, 1}},
    {"builtins", "set", {KnownGlobal::kSet, 0}},
    {"builtins", "frozenset", {KnownGlobal::kSet, 0}},
    {"builtins", "bytes", {KnownGlobal::kBytes, 0}},
    {"builtins", "bytearray", {KnownGlobal::kBytes, 0}},
    {"_codecs", "encode", {KnownGlobal::kEncode, 0}},
};

constexpr std::string_view kSuspiciousModules[] = {
    "os", "posix", "nt", "sys", "subprocess", "runpy", "socket", "webbrowser", "shutil", "pty"};
constexpr std::string_view kSuspiciousBuiltins[] = {"eval", "exec", "open", "compile",
                                                    "__import__"};

template <size_t N>
bool contains(const std::string_view (&list)[N], std::string_view text) {
  return std::find(std::begin(list), std::end(list), text) != std::end(list);
}

}  // namespace

std::span<const TorchScalarType> torch_scalar_types() { return kScalarTypes; }

GlobalMeaning find_global(std::string_view module, std::string_view name) {
  const bool is_storage_module = module == "torch" || module == "torch.cuda" ||
                                 module == "torch.storage" || module == "torch.cpu";
  if (is_storage_module) {
    if (name == "UntypedStorage" || name == "_UntypedStorage") {
      const auto index = find_scalar_type([](const auto& type) { return type.name == "uint8"; });
      return {KnownGlobal::kStorageClass, *index};
    }
    const auto index = find_scalar_type(
        [&](const auto& type) { return !type.storage.empty() && type.storage == name; });
    if (index) return {KnownGlobal::kStorageClass, *index};
  }
  if (module == "torch") {
    const auto index = find_scalar_type([&](const auto& type) { return type.name == name; });
    if (index) return {KnownGlobal::kScalarType, *index};
  }
  for (const KnownRow& row : kKnown) {
    if (row.name == name && row.module == module) return row.meaning;
  }
  return {};
}

std::string_view python3_module(std::string_view module) {
  if (module == "__builtin__") return "builtins";
  if (module == "copy_reg") return "copyreg";
  return module;
}

std::string_view python3_name(std::string_view module, std::string_view name) {
  if (module != "__builtin__") return name;
  if (name == "long") return "int";
  if (name == "xrange") return "range";
  if (name == "unicode" || name == "basestring") return "str";
  if (name == "unichr") return "chr";
  return name;
}

bool is_suspicious_global(std::string_view module, std::string_view name) {
  const std::string_view package = module.substr(0, module.find('.'));
  if (contains(kSuspiciousModules, package)) return true;
  if (python3_module(module) == "builtins" && contains(kSuspiciousBuiltins, name)) return true;
  // Any module that imported `os` is a way to it: as `torch.serialization os`, and since protocol 4
  // resolves dotted names, as `torch.serialization os.system`.
  for (;;) {
    const size_t dot = name.find('.');
    const std::string_view part = name.substr(0, dot);
    if (contains(kSuspiciousModules, part)) return true;
    if (dot == std::string_view::npos) return false;
    name.remove_prefix(dot + 1);
    if (python3_module(part) == "builtins" && contains(kSuspiciousBuiltins, name)) return true;
  }
}

}  // namespace llmctl::formats
