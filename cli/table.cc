#include "cli/table.h"

#include <algorithm>

#include "formats/core/error.h"

namespace llmctl::cli {
namespace {

/// Code points, which is near enough to columns for the names of tensors and files.
size_t width_of(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

}  // namespace

std::string format_table(const std::vector<std::vector<std::string>>& rows,
                         const std::string& alignment) {
  std::vector<std::vector<std::string>> cells = rows;
  std::vector<size_t> widths(alignment.size(), 0);
  for (std::vector<std::string>& row : cells) {
    for (size_t i = 0; i < row.size(); ++i) {
      row[i] = printable(row[i], 500);
      widths.at(i) = std::max(widths.at(i), width_of(row[i]));
    }
  }
  std::string text;
  for (const std::vector<std::string>& row : cells) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string padding(widths[i] - width_of(row[i]), ' ');
      if (i > 0) line += "  ";
      line += alignment[i] == 'r' ? padding + row[i] : row[i] + padding;
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

std::string with_thousands(unsigned long long number) {
  const std::string digits = std::to_string(number);
  std::string text;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

}  // namespace llmctl::cli
