#include "kernels/convert.h"

#include <bit>
#include <limits>

#include "kernels/cpu/dispatch.h"
#include "tests/kernels/kernel_test.h"

namespace llmctl {
namespace {

using kernels::CastStats;
using kernels::Isa;
using kernels::Overflow;
using test::same_bytes;

/// A narrow float format by its definition: what a value rounds to is worked out in F64, whose
/// arithmetic is exact here, so that it shares nothing with the code under test.
struct NarrowFormat {
  DType dtype;
  int mantissa_bits;
  int min_exponent;  ///< of the smallest normal number
  int bias;
  uint16_t infinity;
};
constexpr NarrowFormat kHalf{DType::F16, 10, -14, 15, 0x7C00};
constexpr NarrowFormat kBFloat16{DType::BF16, 7, -126, 127, 0x7F80};

uint16_t round_by_definition(double value, const NarrowFormat& format) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::fabs(value);
  if (std::isinf(magnitude)) return sign | format.infinity;
  int exponent = magnitude == 0 ? format.min_exponent : std::ilogb(magnitude);
  exponent = std::max(exponent, format.min_exponent);
  const double unit = std::ldexp(1.0, exponent - format.mantissa_bits);
  const auto units = static_cast<int64_t>(std::nearbyint(magnitude / unit));  // ties to even
  const int64_t bits = (int64_t{exponent - format.min_exponent} << format.mantissa_bits) + units;
  return static_cast<uint16_t>(sign | std::min<int64_t>(bits, format.infinity));
}

double value_by_definition(uint16_t bits, const NarrowFormat& format) {
  const int field = (bits & 0x7FFF) >> format.mantissa_bits;
  const int mantissa = bits & ((1 << format.mantissa_bits) - 1);
  double magnitude = 0;
  if (field == 0) {
    magnitude = std::ldexp(mantissa, format.min_exponent - format.mantissa_bits);
  } else {
    magnitude = std::ldexp(mantissa + (1 << format.mantissa_bits),
                           field - format.bias - format.mantissa_bits);
  }
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

bool is_nan_pattern(uint16_t bits, const NarrowFormat& format) {
  return (bits & 0x7FFF) > format.infinity;
}

/// Floats at and around every value of both narrow formats and every tie between them, all
/// exponents, specials, and a stride through all bit patterns.
std::vector<float> telling_floats() {
  std::vector<uint32_t> patterns;
  for (uint32_t high = 0; high < 0x10000; high += 5) {
    for (const uint32_t low : {0U, 1U, 0x7FFFU, 0x8000U, 0x8001U, 0xFFFFU}) {
      patterns.push_back((high << 16) | low);
    }
  }
  for (const uint32_t last_before_overflow : {0x7F7F'7FFFU, 0x7F7F'8000U, 0xFF7F'8000U}) {
    patterns.push_back(last_before_overflow);
  }
  for (uint32_t half = 0; half < 0x7C00; ++half) {
    const auto at = std::bit_cast<uint32_t>(
        static_cast<float>(value_by_definition(static_cast<uint16_t>(half), kHalf)));
    for (const uint32_t offset : {0U, 0xFFFU, 0x1000U, 0x1001U, 0x1FFFU}) {
      patterns.push_back(at + offset);
      patterns.push_back((at + offset) | 0x8000'0000U);
    }
  }
  for (uint64_t bits = 0; bits < 0x1'0000'0000; bits += 65537 * 7) {
    patterns.push_back(static_cast<uint32_t>(bits));
  }
  std::vector<float> values;
  values.reserve(patterns.size());
  for (const uint32_t pattern : patterns) values.push_back(std::bit_cast<float>(pattern));
  return values;
}

}  // namespace

TEST_CASE("convert: every half and bfloat16 widens to its value on every ISA") {
  for (const NarrowFormat& format : {kHalf, kBFloat16}) {
    std::vector<uint16_t> all(0x10000);
    for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
    for (const Isa isa : kernels::available_isas()) {
      CAPTURE(kernels::isa_name(isa));
      CAPTURE(dtype_name(format.dtype));
      std::vector<float> wide(all.size());
      const CastStats stats = kernels::cpu::convert(isa, wide.data(), DType::F32, all.data(),
                                                    format.dtype, 0x10000, Overflow::kInf);
      CHECK(stats.overflowed == 0);
      size_t wrong = 0;
      for (size_t i = 0; i < all.size(); ++i) {
        const uint16_t bits = all[i];
        const uint32_t got = std::bit_cast<uint32_t>(wide[i]);
        if (is_nan_pattern(bits, format)) {
          // Sign and payload carried, quiet bit set for a half; a bfloat16 is the upper part.
          uint32_t want = uint32_t{bits} << 16;
          if (format.dtype == DType::F16) {
            want =
                (uint32_t{bits & 0x8000U} << 16) | 0x7FC0'0000U | (uint32_t{bits & 0x3FFU} << 13);
          }
          wrong += got != want;
        } else if ((bits & 0x7FFF) == format.infinity) {
          wrong += !std::isinf(wide[i]) || std::signbit(wide[i]) != ((bits & 0x8000) != 0);
        } else {
          const auto want = static_cast<float>(value_by_definition(bits, format));
          wrong += got != std::bit_cast<uint32_t>(want);
        }
      }
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("convert: floats round to the nearest half and bfloat16 with ties to even on every ISA") {
  const std::vector<float> values = telling_floats();
  for (const NarrowFormat& format : {kHalf, kBFloat16}) {
    for (const Isa isa : kernels::available_isas()) {
      CAPTURE(kernels::isa_name(isa));
      CAPTURE(dtype_name(format.dtype));
      std::vector<uint16_t> narrow(values.size());
      const CastStats stats =
          kernels::cpu::convert(isa, narrow.data(), format.dtype, values.data(), DType::F32,
                                static_cast<int64_t>(values.size()), Overflow::kInf);
      size_t wrong = 0;
      uint64_t overflowed = 0;
      for (size_t i = 0; i < values.size(); ++i) {
        if (std::isnan(values[i])) {
          wrong += !is_nan_pattern(narrow[i], format);
          wrong += (narrow[i] >> 15) != (std::bit_cast<uint32_t>(values[i]) >> 31);
          continue;
        }
        const uint16_t want = round_by_definition(static_cast<double>(values[i]), format);
        wrong += narrow[i] != want;
        overflowed += std::isfinite(values[i]) && (want & 0x7FFF) == format.infinity;
      }
      CHECK(wrong == 0);
      CHECK(stats.overflowed == overflowed);
      CHECK(overflowed > 0);
    }
  }
}

TEST_CASE("convert: doubles round once") {
  // Between two halves, a hair above the tie: rounding to float first would land on the tie.
  const double above_tie = 1.0 + 0x1p-11 + 0x1p-40;
  const double below_tie = 1.0 + 0x1p-10 + 0x1p-11 - 0x1p-40;
  const double bf_above_tie = 1.0 + 0x1p-8 + 0x1p-50;
  std::vector<double> values{
      above_tie, below_tie, bf_above_tie, -above_tie, 0.0,      -0.0,    1e-320,   -1e-45,
      0x1p-25,   0x1.8p-25, 65519.999999, 65520.0,    1e300,    -1e300,  0x1p-133, 0x1.0000001p-134,
      3.4e38,    3.39e38,   INFINITY,     -INFINITY,  0x1p-149, 0x1p-150};
  std::mt19937_64 rng(7);
  for (int i = 0; i < 200000; ++i) {
    const double value = std::bit_cast<double>(rng());
    if (!std::isnan(value)) values.push_back(value);
    values.push_back(std::ldexp(1.0 + static_cast<double>(rng() >> 12) * 0x1p-52,
                                static_cast<int>(rng() % 60) - 30));
    values.push_back(std::ldexp(1.0 + static_cast<double>(rng() % 4096) * 0x1p-12 + 0x1p-45,
                                static_cast<int>(rng() % 300) - 150));
  }
  for (const NarrowFormat& format : {kHalf, kBFloat16}) {
    for (const Isa isa : kernels::available_isas()) {
      std::vector<uint16_t> narrow(values.size());
      kernels::cpu::convert(isa, narrow.data(), format.dtype, values.data(), DType::F64,
                            static_cast<int64_t>(values.size()), Overflow::kInf);
      size_t wrong = 0;
      for (size_t i = 0; i < values.size(); ++i) {
        wrong += narrow[i] != round_by_definition(values[i], format);
      }
      CHECK(wrong == 0);
    }
  }
  CHECK(kernels::float_to_half(static_cast<float>(above_tie)) == 0x3C00);
}

TEST_CASE("convert: clamping writes the largest finite value and counts as infinity does") {
  for (const Isa isa : kernels::available_isas()) {
    CAPTURE(kernels::isa_name(isa));
    // 19 elements: whole vectors and a tail on each ISA, overflow in both.
    std::vector<float> values(19, 1.5F);
    values[0] = 65504.0F;
    values[1] = 65519.99F;
    values[2] = 65520.0F;
    values[3] = -1e30F;
    values[4] = INFINITY;
    values[5] = -INFINITY;
    values[6] = NAN;
    values[17] = std::numeric_limits<float>::max();
    values[18] = -std::numeric_limits<float>::max();
    std::vector<uint16_t> narrow(values.size());
    CastStats stats = kernels::cpu::convert(isa, narrow.data(), DType::F16, values.data(),
                                            DType::F32, 19, Overflow::kClamp);
    CHECK(stats.overflowed == 4);
    CHECK(narrow[0] == 0x7BFF);
    CHECK(narrow[1] == 0x7BFF);
    CHECK(narrow[2] == 0x7BFF);
    CHECK(narrow[3] == 0xFBFF);
    CHECK(narrow[4] == 0x7C00);
    CHECK(narrow[5] == 0xFC00);
    CHECK((narrow[6] & 0x7FFF) > 0x7C00);
    CHECK(narrow[17] == 0x7BFF);
    CHECK(narrow[18] == 0xFBFF);
    stats = kernels::cpu::convert(isa, narrow.data(), DType::BF16, values.data(), DType::F32, 19,
                                  Overflow::kClamp);
    CHECK(stats.overflowed == 2);
    CHECK(narrow[4] == 0x7F80);
    CHECK(narrow[17] == 0x7F7F);
    CHECK(narrow[18] == 0xFF7F);
    const std::vector<double> doubles{1e39, -1e39, INFINITY, 3.4028235e38};
    std::vector<float> floats(4);
    stats = kernels::cpu::convert(isa, floats.data(), DType::F32, doubles.data(), DType::F64, 4,
                                  Overflow::kClamp);
    CHECK(stats.overflowed == 2);
    CHECK(floats[0] == std::numeric_limits<float>::max());
    CHECK(floats[1] == -std::numeric_limits<float>::max());
    CHECK(std::isinf(floats[2]));
  }
}

TEST_CASE("convert: eight-bit floats widen to the published values") {
  // From torch: torch.tensor([b], dtype=torch.uint8).view(torch.float8_e4m3fn).float()
  struct Known {
    uint8_t bits;
    float e4m3, e5m2;
  };
  const Known known[] = {
      {0x00, 0.0F, 0.0F},        {0x01, 0x1p-9F, 0x1p-16F}, {0x07, 0x1.cp-7F, 0x1.cp-14F},
      {0x08, 0x1p-6F, 0x1p-13F}, {0x38, 1.0F, 0.5F},        {0x7B, 352.0F, 57344.0F},
      {0x7E, 448.0F, NAN},       {0x7F, NAN, NAN},          {0xB8, -1.0F, -0.5F},
      {0x7C, 384.0F, INFINITY}};
  for (const Known& value : known) {
    CAPTURE(value.bits);
    float e4m3 = 0;
    float e5m2 = 0;
    kernels::convert(&e4m3, DType::F32, &value.bits, DType::F8_E4M3, 1, Overflow::kInf);
    kernels::convert(&e5m2, DType::F32, &value.bits, DType::F8_E5M2, 1, Overflow::kInf);
    CHECK((std::isnan(value.e4m3) ? std::isnan(e4m3) : e4m3 == value.e4m3));
    CHECK((std::isnan(value.e5m2) ? std::isnan(e5m2) : e5m2 == value.e5m2));
  }
}

TEST_CASE("convert: every pair gives the generic bytes at every length and misalignment") {
  std::mt19937_64 rng(11);
  std::vector<unsigned char> noise(8 * 80);
  for (unsigned char& byte : noise) byte = static_cast<unsigned char>(rng());
  for (const DTypeInfo& from : dtype_table()) {
    for (const DTypeInfo& to : dtype_table()) {
      if (!kernels::can_convert(from.dtype, to.dtype)) continue;
      for (const Isa isa : kernels::available_isas()) {
        CAPTURE(from.name);
        CAPTURE(to.name);
        CAPTURE(kernels::isa_name(isa));
        for (int64_t count = 0; count <= 70; ++count) {
          std::vector<unsigned char> want(8 * 80, 0xAB);
          std::vector<unsigned char> got(8 * 80, 0xAB);
          for (const Overflow overflow : {Overflow::kInf, Overflow::kClamp}) {
            const CastStats a =
                kernels::cpu::convert(Isa::kGeneric, want.data() + 1, to.dtype, noise.data() + 3,
                                      from.dtype, count, overflow);
            const CastStats b = kernels::cpu::convert(
                isa, got.data() + 1, to.dtype, noise.data() + 3, from.dtype, count, overflow);
            REQUIRE(same_bytes(got, want));
            REQUIRE(a.overflowed == b.overflowed);
          }
        }
      }
    }
  }
  CHECK(!kernels::can_convert(DType::F32, DType::F8_E4M3));
  CHECK(!kernels::can_convert(DType::I32, DType::F32));
  CHECK(kernels::can_convert(DType::BOOL, DType::BOOL));
}

}  // namespace llmctl
