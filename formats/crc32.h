// CRC-32 as zip archives use it, also of bytes that are written in pieces and out of order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace llmctl::formats {

/// CRC-32 of `bytes` behind bytes whose CRC-32 is `crc` (0 for none).
uint32_t crc32(std::span<const std::byte> bytes, uint32_t crc = 0);

/// CRC-32 of two ranges laid end to end, from that of each and the length of the second. Takes the
/// logarithm of `second_bytes` in steps.
uint32_t combine_crc32(uint32_t first, uint32_t second, uint64_t second_bytes);

}  // namespace llmctl::formats
