// Byte counts as people write and read them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace llmctl::cli {

/// "1048576", "500MB", "5GB", "1.5TB" (decimal) or "4GiB" (binary), the B optional, any case;
/// nothing for anything else, a negative size or one beyond 2^63.
std::optional<uint64_t> parse_size(std::string_view text);

/// Three significant digits, decimal units: "512 B", "1.21 GB".
std::string format_size(uint64_t bytes);

/// Three significant digits: "82", "560 M", "6.74 B".
std::string format_count(uint64_t count);

/// "0:07", "12:34", "1:02:03".
std::string format_duration(double seconds);

}  // namespace llmctl::cli
