// Plain text columns for people; `--json` is for programs.
#pragma once

#include <string>
#include <vector>

namespace llmctl::cli {

/// Rows as aligned columns, two spaces apart, a newline after each. `alignment` has one character
/// per column: 'l' or 'r'; rows may be shorter. Cells are made printable on the way.
std::string format_table(const std::vector<std::vector<std::string>>& rows,
                         const std::string& alignment);

/// "1,234,567".
std::string with_thousands(unsigned long long number);

}  // namespace llmctl::cli
