// Lays out Megatron-LM's classic checkpoint directories.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "formats/checkpoint.h"
#include "formats/megatron.h"

namespace llmctl::formats {

/// A class or constant by name, such as torch.bfloat16.
struct PythonName {
  std::string_view module, name;
};

/// A value of the pickled `args`; the first alternative is None.
using MegatronArg = std::variant<std::monostate, bool, int64_t, double, std::string,
                                 std::vector<int64_t>, PythonName>;

struct MegatronWriteOptions {
  int tp = 1, pp = 1;
  std::string step_name = "release";  ///< or "iter_0000010"
  int64_t iteration = 0;
  double checkpoint_version = 3.0;  ///< 0: the key is left out
  bool flat = false;                ///< Megatron-Core's one flat dict instead of nested ones
  /// Whose args and other top-level values are carried over; null: none.
  std::shared_ptr<const MegatronInfo> source;
  /// Take the place of attributes of the same name; new ones come behind, in this order.
  std::vector<std::pair<std::string, MegatronArg>> args;
  /// Carries the random number state of the source's rank 0 into every file.
  bool keep_rng = false;
};

/// One file per rank and the tracker. Tensors are named by their path in the file, "model." or
/// "model0." in front, and have both ranks. Throws what place_torch_zip and PickleWriter::copy
/// throw.
std::vector<FilePlan> place_megatron(std::span<const TargetTensor> tensors,
                                     const MegatronWriteOptions& options);

}  // namespace llmctl::formats
