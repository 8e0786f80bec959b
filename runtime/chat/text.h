// Python's str methods on UTF-8, as far as chat templates use them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace llmctl::runtime::chat {

/// Reads the character at `position` and moves past it. Requires: valid UTF-8, as all below do.
char32_t next_character(std::string_view text, size_t& position);
/// len(text).
int64_t count_characters(std::string_view text);
/// list(text).
std::vector<std::string> split_characters(std::string_view text);

/// c.isspace() for one character: White_Space and the four ASCII separators.
bool is_python_space(char32_t c);

enum class Side { kBoth, kLeft, kRight };
/// text.strip() and its kin: white space, or the characters of `set` where it is not null.
std::string strip(std::string_view text, Side side, const std::string* set = nullptr);

/// text.split(None, limit): at runs of white space. A negative limit is none.
std::vector<std::string> split_at_space(std::string_view text, int64_t limit);
/// text.split(separator, limit), or rsplit. Requires: a separator that is not empty.
std::vector<std::string> split_at(std::string_view text, std::string_view separator, int64_t limit,
                                  bool from_right);
/// text.splitlines().
std::vector<std::string> split_lines(std::string_view text);

/// text.replace(from, to, limit). A negative limit is none.
std::string replace(std::string_view text, std::string_view from, std::string_view to,
                    int64_t limit);

enum class Case { kLower, kUpper, kTitle, kCapital };
/// text.lower(), upper(), title(), capitalize(). Throws kInvalidInput for the few characters whose
/// other case is more than one character or depends on the neighbours.
std::string to_case(std::string_view text, Case wanted);

/// repr(text).
std::string python_repr(std::string_view text);

}  // namespace llmctl::runtime::chat
