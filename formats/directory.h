// The files of a checkpoint directory that cannot be trusted: plain names, and links that stay
// inside.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace llmctl::formats {

/// Names in `directory`, sorted by bytes. Throws kEnvironment when it cannot be listed.
std::vector<std::string> list_directory(const std::filesystem::path& directory);

/// Whether `name` names an entry of a directory itself: not empty, no '/', no zero byte, not "." or
/// "..".
bool is_plain_name(std::string_view name);

/// Whether `path`, followed through links, is a directory or a regular file. Never throw.
bool leads_to_directory(const std::filesystem::path& path);
bool leads_to_file(const std::filesystem::path& path);

/// Whether `directory / name` exists, be it a dangling link. Requires: a plain name. Never throws.
bool has_entry(const std::filesystem::path& directory, const std::string& name);

/// `directory / name` after checking that `name` is plain and that a symbolic link does not lead
/// out of `directory`. The links of the Hugging Face cache, from snapshots/REVISION into blobs/ of
/// the same model, are followed too. Throws kInvalidInput.
std::filesystem::path resolve_inside(const std::filesystem::path& directory,
                                     const std::string& name);

/// Tokenizer, generation config and chat template files of a model directory that are carried
/// along with the weights, sorted. Throws what resolve_inside throws.
std::vector<std::filesystem::path> find_side_files(const std::filesystem::path& directory);

}  // namespace llmctl::formats
