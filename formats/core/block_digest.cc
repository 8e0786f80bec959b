#include "formats/core/block_digest.h"

#include <xxhash.h>

#include <algorithm>
#include <optional>

#include "formats/core/aligned_buffer.h"
#include "formats/core/cancel.h"
#include "formats/core/file.h"

namespace llmctl {

void BlockDigest::add(uint64_t first_block, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const size_t size = std::min(bytes.size(), kBlockBytes);
    const XXH128_hash_t hash = XXH3_128bits_withSeed(bytes.data(), size, first_block++);
    low_ += hash.low64;
    high_ += hash.high64 + (low_ < hash.low64 ? 1 : 0);
    bytes = bytes.subspan(size);
  }
}

void BlockDigest::merge(const BlockDigest& other) {
  low_ += other.low_;
  high_ += other.high_ + (low_ < other.low_ ? 1 : 0);
}

std::string BlockDigest::hex() const {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const uint64_t half : {high_, low_}) {
    for (int shift = 60; shift >= 0; shift -= 4) text += kDigits[half >> shift & 15];
  }
  return text;
}

BlockDigest digest_file(const std::filesystem::path& path) {
  constexpr uint64_t kLargeBytes = uint64_t{64} << 20;
  constexpr size_t kStepBytes = size_t{1} << 20;
  const File file = File::open_read(path);
  const uint64_t size = file.size_bytes();
  std::optional<File> direct;
  if (size >= kLargeBytes) direct = File::open_direct(path, Access::kRead);
  AlignedBuffer buffer(static_cast<size_t>(
      std::min<uint64_t>(kStepBytes, (size + kDirectAlignment - 1) & ~(kDirectAlignment - 1))));
  BlockDigest digest;
  for (uint64_t offset = 0; offset < size; offset += kStepBytes) {
    throw_if_cancelled();
    const auto bytes =
        buffer.bytes().first(static_cast<size_t>(std::min<uint64_t>(kStepBytes, size - offset)));
    // The short rest of a file is no multiple of what O_DIRECT wants.
    const bool whole = bytes.size() % kDirectAlignment == 0;
    (direct && whole ? *direct : file).read_at(bytes, offset);
    digest.add(offset / BlockDigest::kBlockBytes, bytes);
  }
  return digest;
}

}  // namespace llmctl
