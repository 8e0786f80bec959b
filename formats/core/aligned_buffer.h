// Memory for transfers that bypass the page cache: whole pages, taken once and used again.
#pragma once

#include <cstddef>
#include <span>

namespace llmctl {

/// What O_DIRECT wants of addresses, offsets and lengths on every disk in use.
constexpr size_t kDirectAlignment = 4096;

/// Owns `size` bytes that start on a page. Pages become real when they are first touched; huge
/// pages are asked for where the size makes sense of them. Not thread-safe; movable.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  /// Throws kEnvironment when there is no such memory.
  explicit AlignedBuffer(size_t size_bytes);
  AlignedBuffer(AlignedBuffer&& other) noexcept;
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept;
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  ~AlignedBuffer();

  std::byte* data() { return data_; }
  size_t size() const { return size_; }
  std::span<std::byte> bytes() { return {data_, size_}; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace llmctl
