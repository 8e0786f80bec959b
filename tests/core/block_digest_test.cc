#include "formats/core/block_digest.h"

#include <doctest/doctest.h>
#include <xxhash.h>

#include <cstring>
#include <fstream>
#include <random>
#include <string>

#include "formats/core/error.h"
#include "tests/support/bytes.h"
#include "tests/support/temp_dir.h"

namespace llmctl {
namespace {

constexpr size_t kBlock = BlockDigest::kBlockBytes;

std::string random_bytes(size_t size) {
  std::mt19937_64 random(7);
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

std::string digest_of(const std::string& bytes) {
  BlockDigest digest;
  digest.add(0, std::as_bytes(std::span(bytes)));
  return digest.hex();
}

TEST_CASE("block digest: is the sum of the blocks' own hashes") {
  const std::string bytes = random_bytes(2 * kBlock + 5);
  unsigned __int128 sum = 0;
  for (size_t block = 0; block < 3; ++block) {
    const size_t size = std::min(kBlock, bytes.size() - block * kBlock);
    const XXH128_hash_t hash = XXH3_128bits_withSeed(bytes.data() + block * kBlock, size, block);
    sum += static_cast<unsigned __int128>(hash.high64) << 64 | hash.low64;
  }
  char text[33];
  std::snprintf(text, sizeof text, "%016llx%016llx", static_cast<unsigned long long>(sum >> 64),
                static_cast<unsigned long long>(sum));
  CHECK(digest_of(bytes) == text);
  CHECK(digest_of("") == std::string(32, '0'));
}

TEST_CASE("block digest: a flipped bit anywhere changes it") {
  std::string bytes = random_bytes(2 * kBlock + 9);
  const std::string digest = digest_of(bytes);
  for (size_t i = 0; i < bytes.size(); i += i + 40 < 2 * kBlock ? 37 : 1) {
    for (int bit = 0; bit < 8; ++bit) {
      bytes[i] = static_cast<char>(bytes[i] ^ 1 << bit);
      CHECK(digest_of(bytes) != digest);
      bytes[i] = static_cast<char>(bytes[i] ^ 1 << bit);
    }
  }
  CHECK(digest_of(bytes) == digest);
}

TEST_CASE("block digest: swapped blocks and missing or added ends change it") {
  const std::string bytes = random_bytes(3 * kBlock + 100);
  const std::string digest = digest_of(bytes);
  std::string swapped = bytes;
  std::swap_ranges(swapped.begin(), swapped.begin() + kBlock, swapped.begin() + kBlock);
  CHECK(digest_of(swapped) != digest);
  for (const size_t less : {size_t{1}, size_t{99}, size_t{100}, kBlock, 2 * kBlock + 1}) {
    CHECK(digest_of(bytes.substr(0, bytes.size() - less)) != digest);
  }
  CHECK(digest_of(bytes + '\0') != digest);
  CHECK(digest_of(std::string(kBlock, '\0')) != digest_of(std::string(2 * kBlock, '\0')));
}

TEST_CASE("block digest: order and partition do not matter") {
  const std::string bytes = random_bytes(7 * kBlock + 1);
  BlockDigest back, front;
  for (size_t block = 8; block-- > 3;) {
    back.add(block, std::as_bytes(std::span(bytes).subspan(block * kBlock))
                        .first(std::min(kBlock, bytes.size() - block * kBlock)));
  }
  front.add(0, std::as_bytes(std::span(bytes).first(3 * kBlock)));
  back.merge(front);
  CHECK(back.hex() == digest_of(bytes));
}

TEST_CASE("block digest: a file has the digest of its bytes whatever its size") {
  const test::TempDir dir;
  for (const size_t size : {size_t{0}, size_t{1}, kBlock, (size_t{3} << 20) + 11}) {
    CAPTURE(size);
    const std::string bytes = random_bytes(size);
    test::write_bytes(dir / "file", bytes);
    CHECK(digest_file(dir / "file").hex() == digest_of(bytes));
  }
  CHECK_THROWS_AS(digest_file(dir / "absent"), Error);
}

TEST_CASE("block digest: a large file is read in bounded memory") {
  const test::TempDir dir;
  const std::string part = random_bytes(size_t{1} << 20);
  BlockDigest digest;
  {
    std::ofstream out(dir / "file", std::ios::binary);
    for (uint64_t i = 0; i < 80; ++i) {
      out << part;
      digest.add(i * (part.size() / kBlock), std::as_bytes(std::span(part)));
    }
    out << "tail";
    digest.add(80 * (part.size() / kBlock), std::as_bytes(std::span("tail", 4)));
  }
  BlockDigest found;
  const test::Cost cost = test::measure([&] { found = digest_file(dir / "file"); });
  CHECK(found == digest);
  CHECK(cost.peak_growth_bytes < int64_t{8} << 20);
}

}  // namespace
}  // namespace llmctl
