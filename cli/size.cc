#include "cli/size.h"

#include <charconv>
#include <cmath>
#include <cstdio>

namespace llmctl::cli {
namespace {

std::string scaled(double value, const char* const* units, int num_units) {
  int unit = 0;
  // 999.5 would round to "1000": step up before it does.
  while (value >= 999.5 && unit + 1 < num_units) {
    value /= 1000;
    ++unit;
  }
  char text[32];
  const int decimals = unit == 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  std::snprintf(text, sizeof text, "%.*f%s", decimals, value, units[unit]);
  return text;
}

}  // namespace

std::optional<uint64_t> parse_size(std::string_view text) {
  double value = 0;
  const auto [stop, error] =
      std::from_chars(text.data(), text.data() + text.size(), value, std::chars_format::fixed);
  if (error != std::errc() || !(value >= 0)) return std::nullopt;
  std::string unit(stop, text.data() + text.size());
  for (char& c : unit) {
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  }
  if (!unit.empty() && unit.back() == 'B') unit.pop_back();
  double base = 1000;
  if (unit.size() == 2 && unit.back() == 'I') {
    base = 1024;
    unit.pop_back();
  }
  double factor = 1;
  if (!unit.empty()) {
    const size_t power = std::string_view("KMGTP").find(unit);
    if (unit.size() != 1 || power == std::string_view::npos) return std::nullopt;
    factor = std::pow(base, static_cast<double>(power + 1));
  }
  const double bytes = value * factor;
  if (!(bytes < 0x1p63)) return std::nullopt;
  return static_cast<uint64_t>(bytes);
}

std::string format_size(uint64_t bytes) {
  static constexpr const char* kUnits[] = {" B", " kB", " MB", " GB", " TB", " PB"};
  return scaled(static_cast<double>(bytes), kUnits, 6);
}

std::string format_count(uint64_t count) {
  static constexpr const char* kUnits[] = {"", " k", " M", " B", " T"};
  return scaled(static_cast<double>(count), kUnits, 5);
}

std::string format_duration(double seconds) {
  const auto total = static_cast<long long>(std::ceil(seconds));
  char text[48];
  if (total >= 3600) {
    std::snprintf(text, sizeof text, "%lld:%02lld:%02lld", total / 3600, total / 60 % 60,
                  total % 60);
  } else {
    std::snprintf(text, sizeof text, "%lld:%02lld", total / 60, total % 60);
  }
  return text;
}

}  // namespace llmctl::cli
