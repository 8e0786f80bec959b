#include "formats/directory.h"

#include <algorithm>
#include <array>
#include <system_error>

#include "formats/core/error.h"

namespace llmctl::formats {
namespace {

namespace fs = std::filesystem;

constexpr std::array<std::string_view, 13> kSideFiles = {
    "added_tokens.json",       "generation_config.json",  "ice_text.model", "merges.txt",
    "sentencepiece.bpe.model", "special_tokens_map.json", "spiece.model",   "tokenizer.json",
    "tokenizer.model",         "tokenizer_config.json",   "vocab.json",     "vocab.txt",
    "char_vocab.json",
};

bool is_side_file(const std::string& name) {
  if (std::find(kSideFiles.begin(), kSideFiles.end(), name) != kSideFiles.end()) return true;
  const fs::path path(name);
  return path.extension() == ".tiktoken" || name.rfind("chat_template.", 0) == 0;
}

bool is_within(const fs::path& path, const fs::path& directory) {
  const auto [end, rest] =
      std::mismatch(directory.begin(), directory.end(), path.begin(), path.end());
  return end == directory.end() && rest != path.end();
}

}  // namespace

std::vector<std::string> list_directory(const fs::path& directory) {
  std::vector<std::string> names;
  try {
    for (const auto& entry : fs::directory_iterator(directory)) {
      names.push_back(entry.path().filename().string());
    }
  } catch (const fs::filesystem_error& e) {
    throw Error(ErrorCode::kEnvironment, "cannot list: " + e.code().message(), directory.string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

bool is_plain_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string_view::npos &&
         name.find('\0') == std::string_view::npos;
}

bool leads_to_directory(const fs::path& path) {
  std::error_code ec;
  return fs::is_directory(path, ec);
}

bool leads_to_file(const fs::path& path) {
  std::error_code ec;
  return fs::is_regular_file(path, ec);
}

bool has_entry(const fs::path& directory, const std::string& name) {
  std::error_code ec;
  return fs::exists(fs::symlink_status(directory / name, ec));
}

fs::path resolve_inside(const fs::path& directory, const std::string& name) {
  if (!is_plain_name(name)) {
    throw_invalid(directory.string(), "'" + printable(name) + "' is not the name of a file in it");
  }
  const fs::path path = directory / name;
  std::error_code ec;
  if (!fs::is_symlink(fs::symlink_status(path, ec))) return path;
  const fs::path target = fs::canonical(path, ec);
  if (ec)
    throw_invalid(path.string(), "a symbolic link that leads nowhere", "fetch the file again");
  const fs::path root = fs::canonical(directory, ec);
  if (ec) throw_invalid(directory.string(), "cannot be resolved: " + ec.message());
  if (is_within(target, root)) return path;
  const fs::path snapshots = root.parent_path();
  if (snapshots.filename() == "snapshots" && is_within(target, snapshots.parent_path() / "blobs")) {
    return path;
  }
  throw_invalid(path.string(),
                "a symbolic link that leads out of the directory, to " + printable(target.string()),
                "put the file itself there, or give the directory it lies in");
}

std::vector<fs::path> find_side_files(const fs::path& directory) {
  std::vector<fs::path> files;
  for (const std::string& name : list_directory(directory)) {
    if (!is_side_file(name)) continue;
    const fs::path path = resolve_inside(directory, name);
    if (leads_to_file(path)) files.push_back(path);
  }
  return files;
}

}  // namespace llmctl::formats
