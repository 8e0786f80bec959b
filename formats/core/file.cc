#include "formats/core/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <limits>
#include <system_error>
#include <utility>

#include "formats/core/aligned_buffer.h"
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
  file.direct_ = true;
  regular_file_size(descriptor, path);
  // Some file systems refuse only the transfer.
  alignas(4096) std::byte block[4096];
  if (::pread(descriptor, block, sizeof block, 0) < 0 && errno == EINVAL) return std::nullopt;
  return file;
}

File::File(File&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)),
      direct_(other.direct_),
      path_(std::move(other.path_)) {}

File& File::operator=(File&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(direct_, other.direct_);
  std::swap(path_, other.path_);
  return *this;
}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

size_t File::advance(size_t done, size_t transferred) const {
  const size_t reached = done + transferred;
  return direct_ ? reached / kDirectAlignment * kDirectAlignment : reached;
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
    const size_t next = advance(done, static_cast<size_t>(n));
    if (next == done) {
      throw Error(ErrorCode::kEnvironment, "only part of a block could be read", path_.string(),
                  "make sure that nothing else writes to it and try again");
    }
    done = next;
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
    const size_t next = advance(done, static_cast<size_t>(n));
    if (next == done) {
      throw Error(ErrorCode::kEnvironment, "cannot write any further", path_.string());
    }
    done = next;
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

void File::sync_data() {
  if (::fdatasync(descriptor_) != 0) throw_errno(path_.string(), "cannot sync");
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

}  // namespace llmctl
