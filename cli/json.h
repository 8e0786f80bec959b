// How verbs print JSON: one document on stdout, keys in a fixed order.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "cli/output.h"

namespace llmctl::cli {

using Json = nlohmann::ordered_json;

/// Prints `value` indented, a newline after it. Names that are no UTF-8 get replacement characters
/// instead of stopping the command.
inline void print_json(const Json& value) {
  write_stdout(value.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

}  // namespace llmctl::cli
