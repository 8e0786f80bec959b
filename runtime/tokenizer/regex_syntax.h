// Rewrites a tokenizer.json regular expression (Oniguruma, Ruby syntax) for PCRE2.
#pragma once

#include <string>
#include <string_view>

namespace llmctl::runtime::tokenizer {

/// The PCRE2 pattern (to be compiled with UTF, UCP, MULTILINE and newline LF) that matches what
/// Oniguruma's Ruby syntax matches for `pattern`. Classes are spelled out by property where the two
/// engines disagree (\s, \w, \h), nested classes are flattened, script names pinned to Script. A
/// construct whose meaning would change (back references, && in a class, a negated class inside a
/// class, POSIX brackets, inline flags other than i) throws kInvalidInput, naming it and `where`.
std::string pcre2_from_oniguruma(std::string_view pattern, const std::string& where);

}  // namespace llmctl::runtime::tokenizer
