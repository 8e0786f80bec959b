// INI files as FasterTransformer's C++ side reads them (its 3rdparty/INIReader.h).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llmctl::formats {

/// A parsed INI text. Immutable after parse; safe to share.
///
/// Section and key lookups ignore case. `;` after white space starts a comment, a line that starts
/// with `;` or `#` is one; `#` inside a line is not. `=` or `:` separates key and value. A line
/// that starts with white space continues the value above, joined by a newline. Unlike INIReader,
/// which carries on, a line that is neither of these and a key given twice in a section are
/// refused, and lines may be longer than its 199 bytes.
class Ini {
 public:
  /// Throws kInvalidInput naming `where` and the line.
  static Ini parse(std::string_view text, std::string where);

  /// Section names in file order, as spelled in the file.
  const std::vector<std::string>& sections() const { return sections_; }
  bool has_section(std::string_view section) const;

  std::optional<std::string> find(std::string_view section, std::string_view key) const;
  /// As strtol with base 0: decimal, 0x hexadecimal, a leading 0 is octal. What follows white space
  /// is ignored, as INIReader does. Throws kInvalidInput when the value is no such number.
  std::optional<int64_t> find_integer(std::string_view section, std::string_view key) const;
  std::optional<double> find_real(std::string_view section, std::string_view key) const;
  /// true/yes/on/1 and false/no/off/0 in any case; throws kInvalidInput on anything else.
  std::optional<bool> find_bool(std::string_view section, std::string_view key) const;

  /// The same, throwing kInvalidInput when the key is absent.
  std::string get(std::string_view section, std::string_view key) const;
  int64_t get_integer(std::string_view section, std::string_view key) const;

 private:
  explicit Ini(std::string where) : where_(std::move(where)) {}
  [[noreturn]] void refuse(std::string_view section, std::string_view key,
                           const std::string& what) const;

  std::string where_;
  std::vector<std::string> sections_;
  std::set<std::string> section_names_;        ///< in lower case
  std::map<std::string, std::string> values_;  ///< "section\nkey" in lower case
};

}  // namespace llmctl::formats
