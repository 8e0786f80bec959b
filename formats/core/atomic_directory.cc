#include "formats/core/atomic_directory.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <system_error>
#include <utility>

#include "formats/core/error.h"

namespace llmctl {

namespace fs = std::filesystem;

void sync_directory(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) throw_errno(path.string(), "cannot open directory");
  const int result = ::fsync(descriptor);
  const int saved = errno;
  ::close(descriptor);
  errno = saved;
  if (result != 0 && saved != EINVAL) throw_errno(path.string(), "cannot sync directory");
}

bool is_or_holds(const fs::path& directory, const fs::path& path) {
  std::error_code ec;
  const fs::path outer = fs::canonical(directory, ec);
  if (ec) return false;
  const fs::path inner = fs::canonical(path, ec);
  if (ec) return false;
  return std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first == outer.end();
}

fs::path without_trailing_slash(fs::path path) {
  while (!path.has_filename() && path.has_relative_path()) path = path.parent_path();
  return path;
}

namespace {

fs::path parent_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

bool is_plain_directory(const fs::path& path) {
  struct stat status {};
  return ::lstat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

/// The names in a directory. The standard library's iterators end the process when memory is short.
std::vector<std::string> names_in(const fs::path& directory) {
  const auto close = [](DIR* stream) { ::closedir(stream); };
  const std::unique_ptr<DIR, decltype(close)> stream(::opendir(directory.c_str()), close);
  if (!stream) throw_errno(directory.string(), "cannot list");
  std::vector<std::string> names;
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(stream.get());
    if (entry == nullptr) break;
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  if (errno != 0) throw_errno(directory.string(), "cannot list");
  std::sort(names.begin(), names.end());
  return names;
}

/// Calls visit(path, is_directory) for all that is below, folders after what is in them.
void walk(const fs::path& directory, const std::function<void(const fs::path&, bool)>& visit) {
  for (const std::string& name : names_in(directory)) {
    const fs::path path = directory / name;
    const bool is_directory = is_plain_directory(path);
    if (is_directory) walk(path, visit);
    visit(path, is_directory);
  }
}

/// As far as that is possible.
void remove_below(const fs::path& directory) {
  walk(directory, [](const fs::path& path, bool is_directory) {
    if (is_directory) {
      ::rmdir(path.c_str());
    } else {
      ::unlink(path.c_str());
    }
  });
}

void remove_tree(const fs::path& path) {
  if (is_plain_directory(path)) remove_below(path);
  ::rmdir(path.c_str());
}

}  // namespace

std::vector<std::string> list_files_below(const fs::path& directory) {
  std::vector<std::string> names;
  walk(directory, [&](const fs::path& path, bool is_directory) {
    if (!is_directory) names.push_back(path.lexically_relative(directory).generic_string());
  });
  std::sort(names.begin(), names.end());
  return names;
}

fs::path AtomicDirectory::working_path_of(const fs::path& target) {
  return parent_of(target) / ("." + target.filename().string().substr(0, 200) + ".llmctl-partial");
}

AtomicDirectory::AtomicDirectory(fs::path target, bool overwrite, Leftover leftover)
    : target_(std::move(target)), overwrite_(overwrite) {
  if (target_.empty()) throw_usage("destination", "the path is empty", "name a directory");
  while (!target_.has_filename() && target_.has_relative_path()) target_ = target_.parent_path();
  check_replaceable();
  const fs::path parent = parent_of(target_);
  std::error_code ec;
  if (!fs::is_directory(parent, ec)) {
    throw_usage(parent.string(), "no such directory", "make it first");
  }
  working_ = working_path_of(target_);
  lock_working();
  restore_old();
  try {
    if (found_leftover_ && leftover == Leftover::kRemove) clear();
  } catch (...) {
    ::close(lock_);
    throw;
  }
}

/// A run that was killed between the two renames of a file system without exchange has left the old
/// target under its second name only.
void AtomicDirectory::restore_old() const {
  fs::path old = working_;
  old += ".old";
  std::error_code ec;
  if (!is_plain_directory(old)) return;
  if (fs::exists(fs::symlink_status(target_, ec))) {
    remove_tree(old);
  } else {
    std::rename(old.c_str(), target_.c_str());
  }
}

/// Makes the working directory, or takes over one that nobody holds.
void AtomicDirectory::lock_working() {
  for (;;) {
    found_leftover_ = false;
    // mkdir rather than mkdtemp, whose 0700 would have to be widened to what the umask allows.
    if (::mkdir(working_.c_str(), 0777) != 0) {
      if (errno != EEXIST) throw_errno(parent_of(target_).string(), "cannot write here");
      found_leftover_ = true;
    }
    lock_ = ::open(working_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (lock_ < 0 && errno == ENOENT) continue;  // its owner has just finished
    if (lock_ < 0) {
      const int saved = errno;
      if (!found_leftover_) ::rmdir(working_.c_str());
      errno = saved;
      throw_errno(working_.string(), "cannot open");
    }
    // A file system that knows no locks leaves it at the name.
    if (::flock(lock_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      ::close(lock_);
      throw Error(ErrorCode::kEnvironment, "another llmctl is writing this directory",
                  target_.string(), "wait until it is done");
    }
    // The name may have gone to the target, with the lock, between the two calls.
    struct stat held {
    }, named{};
    if (::fstat(lock_, &held) == 0 && ::lstat(working_.c_str(), &named) == 0 &&
        held.st_ino == named.st_ino && held.st_dev == named.st_dev) {
      return;
    }
    ::close(lock_);
  }
}

void AtomicDirectory::clear() { remove_below(working_); }

void AtomicDirectory::check_replaceable() {
  std::error_code ec;
  const fs::file_status link = fs::symlink_status(target_, ec);
  const fs::path name = target_.filename();
  if (!fs::exists(link) && name != "." && name != "..") return;
  if (!overwrite_) {
    throw_usage(target_.string(), "already exists",
                "give --overwrite to replace it, or name another destination");
  }
  // The place that a link names is what the user chose; replacing the link would miss its disk.
  if (fs::is_symlink(link) || name == "." || name == "..") {
    const fs::path resolved = fs::canonical(target_, ec);
    if (ec) throw_usage(target_.string(), "a symbolic link that leads nowhere", "remove it first");
    target_ = resolved;
  }
  if (!fs::is_directory(target_, ec)) {
    throw_usage(target_.string(), "exists and is not a directory", "name another destination");
  }
  const fs::path current = fs::current_path(ec);
  if (!ec && is_or_holds(target_, current)) {
    throw_usage(target_.string(), "is or holds the current directory, which cannot be replaced",
                "name another destination");
  }
  struct stat own {
  }, above{};
  if (::stat(target_.c_str(), &own) == 0 && ::stat(parent_of(target_).c_str(), &above) == 0 &&
      own.st_dev != above.st_dev) {
    throw_usage(target_.string(), "is a mount point, which cannot be replaced",
                "name a directory inside it");
  }
}

AtomicDirectory::~AtomicDirectory() {
  try {
    if (!committed_ && !kept_) remove_tree(working_);
  } catch (...) {
    // The next run for this target clears up.
  }
  ::close(lock_);
}

void AtomicDirectory::commit() {
  if (committed_) throw Error(ErrorCode::kInternal, "committed twice", target_.string());
  walk(working_, [](const fs::path& path, bool is_directory) {
    if (is_directory) sync_directory(path);
  });
  sync_directory(working_);
  std::error_code ec;
  const bool exists = fs::exists(fs::symlink_status(target_, ec));
  if (exists && !overwrite_) {
    throw_usage(target_.string(), "appeared while the output was written",
                "give --overwrite to replace it");
  }
  const unsigned flags = exists ? RENAME_EXCHANGE : RENAME_NOREPLACE;
  fs::path old = working_;
  if (::renameat2(AT_FDCWD, working_.c_str(), AT_FDCWD, target_.c_str(), flags) != 0) {
    if (errno != EINVAL && errno != ENOSYS && errno != EOPNOTSUPP) {
      throw_errno(target_.string(), "cannot rename into place");
    }
    // File systems without renameat2: keep the old tree under a second name until the new stands.
    old += ".old";
    if (exists && std::rename(target_.c_str(), old.c_str()) != 0) {
      throw_errno(target_.string(), "cannot rename");
    }
    if (std::rename(working_.c_str(), target_.c_str()) != 0) {
      const int saved = errno;
      if (exists) std::rename(old.c_str(), target_.c_str());
      errno = saved;
      throw_errno(target_.string(), "cannot rename into place");
    }
  }
  committed_ = true;
  sync_directory(parent_of(target_));
  try {
    if (exists) remove_tree(old);
  } catch (...) {
    // The result stands; the next run for this target clears up.
  }
}

}  // namespace llmctl
