// A file's digest that does not depend on the order or the partition in which it was written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

namespace llmctl {

/// The sum modulo 2^128, over the 4096-byte blocks of a file (the last one short), of
/// XXH3-128(bytes of the block, seed = index of the block). So blocks can be added in any order,
/// by several threads each with a value of its own, while a changed, moved or missing block changes
/// the sum. It tells damage, not malice. A plain value; the empty file's is zero.
class BlockDigest {
 public:
  static constexpr size_t kBlockBytes = 4096;

  /// Adds the blocks that start at `first_block`; only the file's last block may be short.
  void add(uint64_t first_block, std::span<const std::byte> bytes);
  /// Adds what another value has seen; the two have no block in common.
  void merge(const BlockDigest& other);
  /// 32 hexadecimal digits, most significant first.
  std::string hex() const;

  /// The sum in two halves, and a value from them.
  uint64_t high() const { return high_; }
  uint64_t low() const { return low_; }
  static BlockDigest of_halves(uint64_t high, uint64_t low) {
    BlockDigest digest;
    digest.high_ = high;
    digest.low_ = low;
    return digest;
  }

  friend bool operator==(const BlockDigest&, const BlockDigest&) = default;

 private:
  uint64_t high_ = 0, low_ = 0;
};

/// The digest of a whole file, read in 1 MiB steps. A file of 64 MiB or more is read past the page
/// cache where the file system allows that. Throws as File::open_read and read_at do, and
/// kInterrupted when cancelled.
BlockDigest digest_file(const std::filesystem::path& path);

}  // namespace llmctl
