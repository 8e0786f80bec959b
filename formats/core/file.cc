#include "formats/core/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
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

}  // namespace

File::File(int descriptor, fs::path path) : descriptor_(descriptor), path_(std::move(path)) {}

File File::open_read(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    if (errno == ENOENT || errno == ENOTDIR) throw_invalid(path.string(), "no such file");
    throw_errno(path.string(), "cannot open");
  }
  File file(descriptor, path);
  regular_file_size(descriptor, path);
  return file;
}

File File::create(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (descriptor < 0) throw_errno(path.string(), "cannot create");
  return File(descriptor, path);
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
    done += static_cast<size_t>(n);
  }
}

void File::allocate(uint64_t size_bytes) {
  if (size_bytes == 0) return;
  const int result = ::posix_fallocate(descriptor_, 0, static_cast<off_t>(size_bytes));
  if (result != 0) {
    errno = result;
    throw_errno(path_.string(), "cannot reserve " + std::to_string(size_bytes) + " bytes",
                "free some disk space or choose another destination");
  }
}

void File::sync() {
  if (::fsync(descriptor_) != 0) throw_errno(path_.string(), "cannot sync");
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
  while (!target_.has_filename() && target_.has_parent_path()) target_ = target_.parent_path();
  if (target_.empty()) throw_usage("destination", "the path is empty", "name a directory");
  std::error_code ec;
  if (fs::exists(fs::symlink_status(target_, ec)) && !overwrite_) {
    throw_usage(target_.string(), "already exists",
                "give --overwrite to replace it, or name another destination");
  }
  const fs::path parent = target_.has_parent_path() ? target_.parent_path() : fs::path(".");
  if (!fs::is_directory(parent, ec)) {
    throw_usage(parent.string(), "no such directory", "make it first");
  }
  std::string pattern =
      (parent / ("." + target_.filename().string() + ".llmctl-XXXXXX")).string();
  if (::mkdtemp(pattern.data()) == nullptr) throw_errno(parent.string(), "cannot write here");
  working_ = pattern;
  ::chmod(working_.c_str(), 0777 & ~[] {
    const mode_t mask = ::umask(0);
    ::umask(mask);
    return mask;
  }());
}

AtomicDirectory::~AtomicDirectory() {
  if (committed_) return;
  std::error_code ec;
  fs::remove_all(working_, ec);
}

void AtomicDirectory::commit() {
  for (const auto& entry : fs::recursive_directory_iterator(working_)) {
    if (entry.is_directory()) sync_directory(entry.path());
  }
  sync_directory(working_);
  std::error_code ec;
  const bool exists = fs::exists(fs::symlink_status(target_, ec));
  if (exists && !overwrite_) {
    throw_usage(target_.string(), "appeared while the output was written",
                "give --overwrite to replace it");
  }
  const unsigned flags = exists ? RENAME_EXCHANGE : RENAME_NOREPLACE;
  if (::renameat2(AT_FDCWD, working_.c_str(), AT_FDCWD, target_.c_str(), flags) != 0) {
    if (errno != EINVAL && errno != ENOSYS) throw_errno(target_.string(), "cannot rename into place");
    // File systems without renameat2: keep the old tree under a second name until the new stands.
    const fs::path old = working_.string() + ".old";
    if (exists && std::rename(target_.c_str(), old.c_str()) != 0) {
      throw_errno(target_.string(), "cannot rename");
    }
    if (std::rename(working_.c_str(), target_.c_str()) != 0) {
      const int saved = errno;
      if (exists) std::rename(old.c_str(), target_.c_str());
      errno = saved;
      throw_errno(target_.string(), "cannot rename into place");
    }
    committed_ = true;
    if (exists) fs::remove_all(old, ec);
  } else {
    committed_ = true;
    if (exists) fs::remove_all(working_, ec);
  }
  sync_directory(target_.has_parent_path() ? target_.parent_path() : fs::path("."));
}

}  // namespace llmctl
