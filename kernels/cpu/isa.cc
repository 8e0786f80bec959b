#include "kernels/isa.h"

#include <cstdlib>
#include <string>
#include <vector>

#include "formats/core/error.h"

namespace llmctl::kernels {
namespace {

std::vector<Isa> probe() {
  std::vector<Isa> found{Isa::kGeneric};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    found.push_back(Isa::kAvx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
      found.push_back(Isa::kAvx512);
    }
  }
#endif
  return found;
}

std::string joined_names() {
  std::string names;
  for (const Isa isa : available_isas()) {
    if (!names.empty()) names += ", ";
    names += isa_name(isa);
  }
  return names;
}

Isa choose() {
  const char* asked = std::getenv("LLMCTL_ISA");
  if (asked == nullptr || *asked == '\0') return available_isas().back();
  for (const Isa isa : available_isas()) {
    if (isa_name(isa) == asked) return isa;
  }
  throw_usage("LLMCTL_ISA",
              "'" + printable(asked) + "' is not an instruction set that this machine runs",
              "use one of: " + joined_names());
}

}  // namespace

Isa active_isa() {
  static const Isa isa = choose();
  return isa;
}

std::span<const Isa> available_isas() {
  static const std::vector<Isa> isas = probe();
  return isas;
}

bool has_bf16_products() {
#if defined(__x86_64__)
  static const bool has = [] {
    __builtin_cpu_init();
    return __builtin_cpu_is("amd") && __builtin_cpu_supports("avx512bf16");
  }();
  return has;
#else
  return false;
#endif
}

std::string_view isa_name(Isa isa) {
  switch (isa) {
    case Isa::kGeneric:
      return "generic";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
  }
  return "unknown";
}

}  // namespace llmctl::kernels
