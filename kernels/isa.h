// Which instruction set the CPU kernels run on.
#pragma once

#include <span>
#include <string_view>

namespace llmctl::kernels {

enum class Isa { kGeneric, kAvx2, kAvx512 };

/// The best this machine has, or what LLMCTL_ISA=generic|avx2|avx512 asks for (kUsage error when
/// the machine lacks it or the word is unknown). Read once.
Isa active_isa();
/// Every ISA this machine can run, kGeneric first. Tests iterate it.
std::span<const Isa> available_isas();
std::string_view isa_name(Isa isa);

/// Whether this machine multiplies pairs of BF16 in one instruction that is worth it: AVX512_BF16
/// at the rate of an FMA (Zen 4 and 5). Intel's runs at half that rate, where two FMA are as fast.
bool has_bf16_products();

}  // namespace llmctl::kernels
