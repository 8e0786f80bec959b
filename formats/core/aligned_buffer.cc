#include "formats/core/aligned_buffer.h"

#include <sys/mman.h>

#include <string>
#include <utility>

#include "formats/core/error.h"

namespace llmctl {

AlignedBuffer::AlignedBuffer(size_t size_bytes) {
  if (size_bytes == 0) return;
  void* address =
      ::mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED) {
    throw_errno("buffers", "cannot take " + std::to_string(size_bytes) + " bytes of memory",
                "give a smaller --max-memory or fewer --jobs");
  }
  if (size_bytes >= size_t{2} << 20) ::madvise(address, size_bytes, MADV_HUGEPAGE);
  data_ = static_cast<std::byte*>(address);
  size_ = size_bytes;
}

AlignedBuffer::AlignedBuffer(AlignedBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

AlignedBuffer& AlignedBuffer::operator=(AlignedBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

AlignedBuffer::~AlignedBuffer() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

}  // namespace llmctl
