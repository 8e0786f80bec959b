// What the names inside a pickle mean to llmctl: torch's types, functions with a meaning, dangers.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "formats/core/dtype.h"

namespace llmctl::formats {

/// An element type of torch.
struct TorchScalarType {
  std::string_view name;       ///< torch spelling without the module, "bfloat16"
  std::string_view storage;    ///< storage class, "BFloat16Storage"; empty where torch has none
  int bytes;                   ///< of one element
  std::optional<DType> dtype;  ///< nothing: llmctl cannot read such a weight
};

/// All of them; the untyped storage counts as "uint8".
std::span<const TorchScalarType> torch_scalar_types();

/// Globals that the pickle machine interprets. Everything else is kept as a name.
enum class KnownGlobal : uint8_t {
  kNone,
  kStorageClass,   ///< `value` is an index into torch_scalar_types()
  kTensorClass,    ///< Tensor, Parameter: subclasses in name only
  kScalarType,     ///< `value` is an index into torch_scalar_types()
  kRebuildTensor,  ///< `value` 1: _rebuild_tensor, 2: _v2, 3: _v3
  kRebuildParameter,
  kRebuildFromType,
  kTorchSize,
  kOrderedDict,  ///< also defaultdict and Counter; `value` 1 when the first argument is a factory
  kSet,
  kBytes,
  kEncode,
};

struct GlobalMeaning {
  KnownGlobal known = KnownGlobal::kNone;
  uint8_t value = 0;
};

/// Requires: `module` as Python 3 names it.
GlobalMeaning find_global(std::string_view module, std::string_view name);

/// Python 2's name of a builtin module, as protocol 2 writes it, in Python 3's spelling.
std::string_view python3_module(std::string_view module);

/// The same for a name: `__builtin__ long` is `builtins int`. Requires: `module` as in the pickle.
std::string_view python3_name(std::string_view module, std::string_view name);

/// Whether the global reaches the operating system or the interpreter: a checkpoint has no use for
/// it, a trap has. Dotted names (`torch.serialization os.system`) count by any of their parts.
bool is_suspicious_global(std::string_view module, std::string_view name);

}  // namespace llmctl::formats
