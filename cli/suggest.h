// "Did you mean": the known name nearest to a mistyped one.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace llmctl::cli {

/// The candidate that the fewest edits (insert, delete, replace, swap neighbours) turn `name`
/// into, when those are at most a third of its length; nothing otherwise. First one on a tie.
std::optional<std::string> closest_name(std::string_view name,
                                        std::span<const std::string> candidates);

/// "did you mean 'X'?" or `otherwise`.
std::string did_you_mean(std::string_view name, std::span<const std::string> candidates,
                         const std::string& otherwise);

}  // namespace llmctl::cli
