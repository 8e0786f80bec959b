// A directory that appears complete or not at all.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace llmctl {

/// What becomes of a working directory that a killed run has left.
enum class Leftover { kRemove, kContinue };

/// Files go into a hidden sibling of `target`, ".NAME.llmctl-partial"; `commit` syncs and renames
/// it into place. The name is fixed, so that the next run for the same target finds what a killed
/// one has left, and locked, so that two runs cannot meet there. Not thread-safe; the files inside
/// are the callers'.
class AtomicDirectory {
 public:
  /// Requires: the parent of `target` exists. With `overwrite` an existing directory (or the one
  /// that a symbolic link names) is replaced at commit; without, an existing target throws kUsage
  /// at once and nothing is written. A file, a mount point and the current directory or one above
  /// it are never replaced. Throws kEnvironment when another process works on the same target.
  AtomicDirectory(std::filesystem::path target, bool overwrite,
                  Leftover leftover = Leftover::kRemove);
  /// Removes the working directory unless committed or kept. Never throws.
  ~AtomicDirectory();
  AtomicDirectory(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(const AtomicDirectory&) = delete;

  const std::filesystem::path& working_path() const { return working_; }
  /// The working directory that a run for `target` uses, if that is no link.
  static std::filesystem::path working_path_of(const std::filesystem::path& target);
  /// Whether there was a working directory of a killed run: removed, or with kContinue still there.
  bool found_leftover() const { return found_leftover_; }
  /// Removes what is in the working directory.
  void clear();
  /// The destructor leaves the working directory to a later run.
  void keep() { kept_ = true; }
  /// fsyncs the directory, renames it to the target (exchanging with, then removing, an old one),
  /// fsyncs the parent. Throws kEnvironment; on failure the old target stands untouched.
  void commit();

 private:
  void check_replaceable();
  void restore_old() const;
  void lock_working();

  std::filesystem::path target_, working_;
  bool overwrite_, committed_ = false, kept_ = false, found_leftover_ = false;
  int lock_ = -1;  // descriptor of the working directory
};

/// Names of all files below `directory`, relative to it, sorted; links are files, folders are left
/// out. Throws kEnvironment.
std::vector<std::string> list_files_below(const std::filesystem::path& directory);

/// Whether `path` is `directory` or lies in it, links followed. False where either does not exist.
bool is_or_holds(const std::filesystem::path& directory, const std::filesystem::path& path);

/// `path` without what ends it but names nothing: "a/b//" is "a/b".
std::filesystem::path without_trailing_slash(std::filesystem::path path);

/// fsync of a directory: its names are then on the disk. Throws kEnvironment.
void sync_directory(const std::filesystem::path& path);

}  // namespace llmctl
