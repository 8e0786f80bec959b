#include "formats/crc32.h"

#include <libdeflate.h>

namespace llmctl::formats {
namespace {

constexpr uint32_t kPolynomial = 0xEDB88320;  // bit-reversed: bit 31 is x^0

/// a * b modulo the polynomial.
uint32_t multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = uint32_t{1} << 31; bit != 0; bit >>= 1) {
    if ((a & bit) != 0) product ^= b;
    b = (b & 1) != 0 ? b >> 1 ^ kPolynomial : b >> 1;
  }
  return product;
}

}  // namespace

uint32_t crc32(std::span<const std::byte> bytes, uint32_t crc) {
  return libdeflate_crc32(crc, bytes.data(), bytes.size());
}

uint32_t combine_crc32(uint32_t first, uint32_t second, uint64_t second_bytes) {
  // Appending n bytes multiplies the first CRC by x^(8n); the conditioning of both cancels out.
  uint32_t power = uint32_t{1} << (31 - 8), factor = uint32_t{1} << 31;
  for (uint64_t n = second_bytes; n != 0; n >>= 1) {
    if ((n & 1) != 0) factor = multiply(factor, power);
    power = multiply(power, power);
  }
  return multiply(first, factor) ^ second;
}

}  // namespace llmctl::formats
