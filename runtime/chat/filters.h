// Jinja's filters and tests, as far as chat templates use them.
#pragma once

#include <string>
#include <string_view>

#include "runtime/chat/machine.h"

namespace llmctl::runtime::chat {

bool is_known_filter(std::string_view name);
bool is_known_test(std::string_view name);

/// `input | name(arguments)`. Requires: is_known_filter(name).
Value apply_filter(Machine& machine, const std::string& name, const Value& input,
                   const Arguments& arguments);

/// `input is name(arguments)`. Requires: is_known_test(name).
bool apply_test(Machine& machine, const std::string& name, const Value& input,
                const Arguments& arguments);

/// `needle in haystack`.
bool contains(Machine& machine, const Value& haystack, const Value& needle);

}  // namespace llmctl::runtime::chat
