#include "formats/core/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <limits>
#include <random>
#include <system_error>
#include <utility>

#include "formats/core/error.h"

namespace llmctl {
namespace fs = std::filesystem;
namespace {

uint64_t regular_file_size(int descriptor, const fs::path& path) {
  struct stat status {};
  if (fstat(descriptor, &status) != 0) throw_errno(path.string(), "cannot stat");
  if (!S_ISREG(status.st_mode)) throw_invalid(path.string(), "not a regular file");
  return static_cast<uint64_t>(status.st_size);
}

void sync_directory(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) throw_errno(path.string(), "cannot open directory");
  const int result = ::fsync(descriptor);
  const int saved = errno;
  ::close(descriptor);
  errno = saved;
  if (result != 0 && saved != EINVAL) throw_errno(path.string(), "cannot sync directory");
}

fs::path parent_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

}  // namespace

File::File(int descriptor, fs::path path) : descriptor_(descriptor), path_(std::move(path)) {}

File File::open_existing(const fs::path& path, int flags) {
  // O_NONBLOCK: opening a pipe must fail below, not wait for a writer. Regular files ignore it.
  const int descriptor = ::open(path.c_str(), flags | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) {
    if (errno == ENOENT || errno == ENOTDIR) throw_invalid(path.string(), "no such file");
    throw_errno(path.string(), "cannot open");
  }
  File file(descriptor, path);
  regular_file_size(descriptor, path);
  return file;
}

File File::open_read(const fs::path& path) { return open_existing(path, O_RDONLY); }

File File::open_write(const fs::path& path) { return open_existing(path, O_RDWR); }

File File::create(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (descriptor < 0) throw_errno(path.string(), "cannot create");
  return File(descriptor, path);
}

std::optional<File> File::open_direct(const fs::path& path, Access access) {
  const int flags = (access == Access::kRead ? O_RDONLY : O_RDWR) | O_DIRECT | O_CLOEXEC;
  const int descriptor = ::open(path.c_str(), flags | O_NONBLOCK);
  if (descriptor < 0) {
    if (errno == EINVAL || errno == EOPNOTSUPP) return std::nullopt;
    if (errno == ENOENT || errno == ENOTDIR) throw_invalid(path.string(), "no such file");
    throw_errno(path.string(), "cannot open");
  }
  File file(descriptor, path);
  regular_file_size(descriptor, path);
  // Some file systems refuse only the transfer.
  alignas(4096) std::byte block[4096];
  if (::pread(descriptor, block, sizeof block, 0) < 0 && errno == EINVAL) return std::nullopt;
  return file;
}

File::File(File&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)), path_(std::move(other.path_)) {}

File& File::operator=(File&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(path_, other.path_);
  return *this;
}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

uint64_t File::size_bytes() const { return regular_file_size(descriptor_, path_); }

void File::read_at(std::span<std::byte> out, uint64_t offset) const {
  size_t done = 0;
  while (done < out.size()) {
    const ssize_t n = ::pread(descriptor_, out.data() + done, out.size() - done,
                              static_cast<off_t>(offset + done));
    if (n < 0) {
      if (errno == EINTR) continue;
      throw_errno(path_.string(), "cannot read");
    }
    if (n == 0) {
      throw Error(ErrorCode::kEnvironment, "file became shorter while it was read", path_.string(),
                  "make sure that nothing else writes to it and try again");
    }
    done += static_cast<size_t>(n);
  }
}

void File::write_at(std::span<const std::byte> data, uint64_t offset) {
  size_t done = 0;
  while (done < data.size()) {
    const ssize_t n = ::pwrite(descriptor_, data.data() + done, data.size() - done,
                               static_cast<off_t>(offset + done));
    if (n < 0) {
      if (errno == EINTR) continue;
      throw_errno(path_.string(), "cannot write");
    }
    if (n == 0) throw Error(ErrorCode::kEnvironment, "cannot write any further", path_.string());
    done += static_cast<size_t>(n);
  }
}

void File::allocate(uint64_t size_bytes) {
  if (size_bytes == 0) return;
  if (size_bytes > static_cast<uint64_t>(std::numeric_limits<off_t>::max())) {
    throw Error(ErrorCode::kEnvironment,
                "no file can have " + std::to_string(size_bytes) + " bytes", path_.string());
  }
  int result = 0;
  do {
    result = ::posix_fallocate(descriptor_, 0, static_cast<off_t>(size_bytes));
  } while (result == EINTR);
  // A file system that cannot reserve can still hold the file; it may then fill up half-way.
  if ((result == EOPNOTSUPP || result == EINVAL || result == ENOSYS) &&
      ::ftruncate(descriptor_, static_cast<off_t>(size_bytes)) == 0) {
    return;
  }
  if (result != 0) {
    errno = result;
    throw_errno(path_.string(), "cannot reserve " + std::to_string(size_bytes) + " bytes",
                "free some disk space or choose another destination");
  }
}

void File::sync() {
  if (::fsync(descriptor_) != 0) throw_errno(path_.string(), "cannot sync");
}

void File::drop_cache(uint64_t offset, uint64_t size_bytes) const {
  ::posix_fadvise(descriptor_, static_cast<off_t>(offset), static_cast<off_t>(size_bytes),
                  POSIX_FADV_DONTNEED);
}

void File::start_writing(uint64_t offset, uint64_t size_bytes, bool wait) const {
  const unsigned flags = SYNC_FILE_RANGE_WRITE |
                         (wait ? SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WAIT_AFTER : 0U);
  ::sync_file_range(descriptor_, static_cast<off64_t>(offset), static_cast<off64_t>(size_bytes),
                    flags);
}

MappedFile::MappedFile(const fs::path& path) : path_(path) {
  const File file = File::open_read(path);
  size_ = static_cast<size_t>(file.size_bytes());
  if (size_ == 0) return;
  void* address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.descriptor(), 0);
  if (address == MAP_FAILED) throw_errno(path.string(), "cannot map");
  data_ = static_cast<const std::byte*>(address);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

std::string read_text_file(const fs::path& path, uint64_t max_bytes) {
  const File file = File::open_read(path);
  const uint64_t size = file.size_bytes();
  if (size > max_bytes) {
    throw_invalid(path.string(), std::to_string(size) + " bytes, but at most " +
                                     std::to_string(max_bytes) + " are expected here");
  }
  std::string text(static_cast<size_t>(size), '\0');
  file.read_at(std::as_writable_bytes(std::span(text)), 0);
  return text;
}

AtomicDirectory::AtomicDirectory(fs::path target, bool overwrite)
    : target_(std::move(target)), overwrite_(overwrite) {
  if (target_.empty()) throw_usage("destination", "the path is empty", "name a directory");
  while (!target_.has_filename() && target_.has_relative_path()) target_ = target_.parent_path();
  check_replaceable();
  const fs::path parent = parent_of(target_);
  std::error_code ec;
  if (!fs::is_directory(parent, ec)) {
    throw_usage(parent.string(), "no such directory", "make it first");
  }
  // mkdir rather than mkdtemp, whose 0700 would have to be widened to what the umask allows.
  std::random_device random;
  const std::string start = "." + target_.filename().string().substr(0, 200) + ".llmctl-";
  for (int attempt = 0;; ++attempt) {
    char suffix[9];
    std::snprintf(suffix, sizeof suffix, "%08x", static_cast<unsigned>(random()));
    working_ = parent / (start + suffix);
    if (::mkdir(working_.c_str(), 0777) == 0) break;
    if (errno != EEXIST || attempt == 100) throw_errno(parent.string(), "cannot write here");
  }
}

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
  const fs::path whole = fs::canonical(target_, ec);
  const fs::path current = fs::current_path(ec);
  if (!ec && std::mismatch(whole.begin(), whole.end(), current.begin(), current.end()).first ==
                 whole.end()) {
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
  if (committed_) return;
  std::error_code ec;
  fs::remove_all(working_, ec);
}

void AtomicDirectory::commit() {
  if (committed_) throw Error(ErrorCode::kInternal, "committed twice", target_.string());
  try {
    for (const auto& entry : fs::recursive_directory_iterator(working_)) {
      if (entry.is_directory()) sync_directory(entry.path());
    }
  } catch (const fs::filesystem_error& e) {
    throw Error(ErrorCode::kEnvironment, "cannot list: " + e.code().message(), working_.string());
  }
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
  if (exists) fs::remove_all(old, ec);
  sync_directory(parent_of(target_));
}

}  // namespace llmctl
