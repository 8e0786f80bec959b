// Python's methods on the values of a chat template.
#pragma once

#include <string>

#include "runtime/chat/machine.h"

namespace llmctl::runtime::chat {

/// object.name(arguments). Fails for a method that is not supported.
Value call_method(Machine& machine, const Value& object, const std::string& name,
                  const Arguments& arguments);

}  // namespace llmctl::runtime::chat
